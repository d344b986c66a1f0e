"""What every command prints on the embedded pair, at 80 and 120 columns, kept in tests/outputs/.

Each file is one command: its line, its standard output, and its notes on standard error. Numbers
may differ as two machines do (`documents.agree`). After a change of what commands print, rewrite
the files, and read the difference before you commit it:

    python -m tests.outputs --update [NAME ...]
"""

import argparse
import contextlib
import importlib
import io
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))
from documents import ROOT, TERMINAL, agree, unmeasured
from saescope.surfaces.cli import COMMANDS, app, progress, run, show
from saescope.surfaces.cli.consoles import SafeConsole

FOLDER = Path(__file__).parent / "outputs"
WIDTHS = (80, 120)
_HEIGHT = 100  # a plain terminal without a height counts as one of 80 columns


@dataclass(frozen=True)
class Example:
    """One command line; later ones use what earlier ones wrote."""

    line: str
    code: int = 0
    slow: bool = False
    by_width: bool = False
    "Run once for each width, since what prints it reads the width of the terminal."


EXAMPLES = {
    "saescope": Example("saescope", by_width=True),
    "help": Example("saescope --help", by_width=True),
    "scan": Example('saescope scan "The red dog sleeps. 赤い犬が眠る。" --n-top 4'),
    "contrast": Example("saescope contrast languages --layers 0,2 --n-top 3 --out run"),
    "layers": Example("saescope layers run --feature 2/5"),
    "profile": Example("saescope profile run"),
    "detect": Example("saescope detect run --target japanese --min-rate 0.7"),
    "plan": Example("saescope plan"),
    "fetch": Example("saescope fetch"),
    "steer": Example('saescope steer "The red dog" --edit "2/7 scale -1" --max-new-tokens 12'),
    "refusal": Example('saescope steer "The red dog" --edit "2/70000 scale -1"', code=2),
    "report": Example("saescope report run"),
    "verify": Example("saescope verify run"),
    "export": Example('saescope export --edit "2/7 add 1" --format gguf --out steer.gguf'),
    "rerun": Example("saescope rerun run", slow=True),
    "precision": Example("saescope precision languages --out precision", slow=True),
    "fitness": Example(
        "saescope fitness --model saescope-tiny-chat --sae saescope-tiny-sae"
        " --base saescope-tiny --out fitness",
        slow=True,
    ),
    "select": Example(
        "saescope select requests --target declined_en --against answered_en --last 3"
        " --model saescope-tiny-chat --sae saescope-tiny-chat-sae --no-thinking"
        " --max-new-tokens 8 --candidates 3 --prompts 5 --edits chosen.toml",
        slow=True,
    ),
    "evaluate": Example(
        'saescope evaluate --edit "2/412 scale -3" --prompts requests --target declined_en'
        " --model saescope-tiny-chat --sae saescope-tiny-chat-sae --no-thinking"
        " --max-new-tokens 8 --draws 1 --quick",
        slow=True,
    ),
    "bake": Example('saescope bake --edit "2/7 project" --measure full --out baked', slow=True),
    "diff": Example("saescope diff saescope-tiny baked", slow=True),
    "demo": Example("saescope demo --out demo", slow=True),
}


def printed(names: Sequence[str], folder: Path) -> Iterator[tuple[str, int, str]]:
    """Run examples in an empty folder; yield name, width and text of each file."""
    with _terminal(), contextlib.chdir(folder):
        for name in names:
            for width, text in _texts(EXAMPLES[name]):
                for path in (folder, ROOT):
                    text = text.replace(f"{path}/", "").replace(str(path), ".")
                yield name, width, text


def stored(name: str, width: int) -> Path:
    """The file of an example at a width."""
    return FOLDER / f"{name}.{width}.txt"


def differences(name: str, width: int, text: str) -> str:
    """What does not agree with the file; empty if nothing does."""
    kept = stored(name, width).read_text(encoding="utf-8")
    if agree(kept.splitlines(), text.splitlines()):
        return ""
    return f"{stored(name, width)} holds\n{kept}\nprinted was\n{text}"


def _reads_differently(path: Path, text: str) -> bool:
    """Whether anything but a hash, a time or a size is another one, spaces included."""
    return unmeasured(path.read_text(encoding="utf-8")) != unmeasured(text)


def _texts(example: Example) -> Iterator[tuple[int, str]]:
    """Run a command, once if its result can be shown at every width."""
    if example.by_width:
        for width in WIDTHS:
            app.console = Console(width=width, height=_HEIGHT)  # of help
            yield width, _run(example)
        app.console = None
        return
    consoles = {width: _console(width) for width in WIDTHS}
    with _shown_on(list(consoles.values())):
        rest = _run(example)
    for width, console in consoles.items():
        command, _, others = rest.partition("\n")
        yield width, f"{command}\n{_text(console)}{others}"


def _run(example: Example) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(shlex.split(example.line)[1:])
    if code != example.code:
        raise AssertionError(f"{example.line}: exits with {code}\n{err.getvalue()}")
    text = f"$ {example.line}\n{out.getvalue()}"
    # A result that is shown at two widths repeats its notes.
    notes = [line for line in dict.fromkeys(err.getvalue().splitlines()) if line.strip()]
    if notes:
        text = "\n".join([text, "stderr:", *notes])
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def _console(width: int) -> Console:
    return SafeConsole(file=io.StringIO(), width=width, height=_HEIGHT, no_color=True)


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


@contextlib.contextmanager
def _shown_on(consoles: Sequence[Console]) -> Iterator[None]:
    """Within the context, results are printed on these consoles instead of stdout."""

    def print_result(show_it: Callable[[Console], None]) -> None:
        for console in consoles:
            show_it(console)

    verbs = [command.verb for commands in COMMANDS.values() for command in commands]
    modules: list[Any] = [importlib.import_module(f"saescope.surfaces.cli.{v}") for v in verbs]
    replaced = [module for module in [show, *modules] if hasattr(module, "print_result")]
    before = show.print_result
    for module in replaced:
        module.print_result = print_result
    try:
        yield
    finally:
        for module in replaced:
            module.print_result = before


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    """Print as on a plain terminal, and nothing about how slow this machine is."""
    before, quiet = dict(os.environ), progress.QUIET_SECONDS
    os.environ.update(TERMINAL)
    progress.QUIET_SECONDS = math.inf
    try:
        yield
    finally:
        progress.QUIET_SECONDS = quiet
        os.environ.clear()
        os.environ.update(before)


def main() -> None:
    """Run examples; with --update, rewrite their files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="Default: all examples.")
    parser.add_argument("--update", action="store_true", help="Rewrite files that differ.")
    arguments = parser.parse_args()
    names = [n for n in EXAMPLES if not arguments.names or n in arguments.names or n == "contrast"]
    different = False
    with tempfile.TemporaryDirectory() as folder:
        for name, width, text in printed(names, Path(folder).resolve()):
            path = stored(name, width)
            if arguments.update:
                if not path.exists() or _reads_differently(path, text):
                    path.write_text(text, encoding="utf-8")
                    print(f"{path.name}: rewritten")
            elif difference := differences(name, width, text):
                different = True
                print(difference)
    sys.exit(different)


if __name__ == "__main__":
    main()
