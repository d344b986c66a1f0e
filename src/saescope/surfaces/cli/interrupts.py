"""Ctrl-C and SIGTERM: what an interrupted command keeps, and how to go on."""

import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from saescope.errors import Interrupted


def command_line(*words: str) -> str:
    """Return a command to type in this shell and folder: the program as it was started here."""
    return " ".join([_program(), *map(shlex.quote, words)])


def _program() -> str:
    """Return `saescope` if the shell finds this very program under that name, else its path."""
    started = Path(sys.argv[0])
    if started.parts[-2:] == ("saescope", "__main__.py"):
        return f"{shlex.quote(_short(Path(sys.executable)))} -m saescope"
    found = shutil.which("saescope")
    if found is not None and Path(found).resolve() == started.resolve():
        return "saescope"
    if started.name != "saescope" or "/" not in sys.argv[0]:  # called from Python
        return "saescope"
    return shlex.quote(_short(started))


def _short(path: Path) -> str:
    """Return a path from the working folder if it lies below it."""
    absolute = Path(path).absolute()
    try:
        return f"./{absolute.relative_to(Path.cwd())}"
    except ValueError:
        return str(absolute)


def how_to_go_on(arguments: Sequence[str], error: KeyboardInterrupt, resumes: bool) -> str:
    """Say what an interrupted command keeps, and which command goes on."""
    kept = str(error) or ("finished work is kept" if resumes else "nothing was written")
    onward = "to go on" if resumes else "to start again"
    if isinstance(error, Interrupted) and error.onward:
        onward = error.onward
    return f"{kept}; {onward}: {command_line(*arguments)}"


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Within the context, SIGTERM ends the command as Ctrl-C does."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread, which alone receives signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
