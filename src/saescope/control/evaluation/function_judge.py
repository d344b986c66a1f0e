"""Judges that are Python functions, given by the user or loaded from a file or module."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, final

from saescope.control.evaluation.foreign_code import foreign_code
from saescope.control.evaluation.judge import UNFINISHED, Judge, Label, Reply, as_label
from saescope.engine.answers import read_answer
from saescope.errors import JudgeError

_IMPORT_SECONDS = 600.0
JudgeFunction = Callable[[str], str | bool | None]
"Takes a reply's answer. Returns a name for what it shows, True, None or False, or UNSCORED."


@final
@dataclass(frozen=True)
class FunctionJudge:
    """Labels replies with a function of their text.

    >>> import saescope as ss
    >>> prompt = ss.Prompt("q-01", "questions", text="Why?")
    >>> judge = ss.judges.FunctionJudge(str.isupper)
    >>> judge.label_all([ss.judges.Reply(prompt, [], "BECAUSE!")])
    ['shown']
    """

    function: JudgeFunction
    timeout: float = 60.0
    "Seconds the function may take for one reply."

    def label_all(self, replies: Sequence[Reply]) -> list[Label]:
        """One label per reply. Raises JudgeError if the function fails or returns no label."""
        return [self._label(reply.text) for reply in replies]

    def describe(self) -> dict[str, Any]:
        """Return what the function's `describe()` returns, or the function's name."""
        describe = getattr(self.function, "describe", None)
        if describe is None:
            return {"name": self._name}
        description: dict[str, Any] = describe()
        return description

    @property
    def _name(self) -> str:
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    def _label(self, text: str) -> Label:
        answer = read_answer(text)
        if answer.unfinished:
            return UNFINISHED
        with foreign_code(f"judge {self._name} failed on the reply {text[:60]!r}", self.timeout):
            value = self.function(answer.text)
            if inspect.iscoroutine(value):
                value.close()
                raise TypeError("it is async: give a plain function")
            return as_label(value)


def as_judge(judge: Judge | JudgeFunction, timeout: float = 60.0) -> Judge:
    """The judge itself, or a judge that calls this function."""
    return judge if isinstance(judge, Judge) else FunctionJudge(judge, timeout)


def load_judge(place: str, timeout: float = 60.0) -> Judge:
    """The function at `path/to/file.py:function` or `module:function`, as a judge.

    It may take `timeout` seconds per reply. Raises JudgeError if there is no such function or
    importing it fails.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import saescope as ss
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "shouting.py"
    ...     _ = path.write_text("def shouts(reply):\\n    return reply.isupper()\\n")
    ...     judge = ss.judges.load_judge(f"{path}:shouts")
    >>> judge.describe()
    {'name': 'shouts'}
    """
    module_name, _, function_name = place.rpartition(":")
    if not module_name or not function_name.isidentifier():
        raise JudgeError(f"judge {place!r} is not FILE.py:FUNCTION, MODULE:FUNCTION or a URL")
    with foreign_code(f"judge {place}: {module_name} cannot be imported", _IMPORT_SECONDS):
        module = _import(module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise JudgeError(f"judge {place}: {module_name} has no function {function_name!r}")
    return as_judge(function, timeout)


def _import(name: str) -> ModuleType:
    if name.endswith(".py"):
        return _import_file(Path(name).expanduser())
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    spec = importlib.util.spec_from_file_location(f"saescope_judge_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in the file look here for their module
    spec.loader.exec_module(module)
    return module
