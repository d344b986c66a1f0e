"""The `saescope` command. Commands are imported when called; nothing here needs torch."""

import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError
from cyclopts.argument import ArgumentCollection, update_argument_collection

from saescope.errors import SaescopeError
from saescope.version import __version__

CONFIG = "saescope.toml"
DONE, FOUND, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


def _configured(app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Take from the configuration what the command line does not say.

    cyclopts' own reader would leave out `layers`, which is an option and a command too.
    """
    path = Path(CONFIG)
    if path.is_file():
        data = _read_config(path)
        apps = app.app_stack.stack[-1]
        update_argument_collection(
            data, str(path.absolute()), arguments, apps, root_keys=(), allow_unknown=True
        )


app = App(
    name="saescope",
    help="Find the SAE features behind a behaviour, on the machine you have.",
    version=__version__,
    config=_configured,
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    help_format="plaintext",
)
_COMMANDS = {
    "demo": "The main job on the embedded pair: scan, contrast, steer, report.",
    "plan": "What a job would fetch, keep on disk and hold in memory; does it fit?",
    "fetch": "The files a job needs, and no others.",
    "scan": "Each token's strongest features.",
    "contrast": "Features that set prompt sets apart, confirmed on held-out prompts.",
    "detect": "Features that detect a behaviour, and a classifier made of them.",
    "select": "Which of the detected features to edit: by what changing them does.",
    "steer": "What a model writes with and without edits, side by side.",
    "evaluate": "What edits do to a behaviour and to everything else, beside controls.",
    "bake": "Edits put into weights: a checkpoint that other programs load.",
    "export": "Edits, SAEs and runs as files that other programs load.",
    "diff": "What changed between two checkpoints, by tensor and along a direction.",
    "layers": "Where sets separate best, and which feature a concept is at each depth.",
    "profile": "Tokens, residual norms and sinks of prompt sets.",
    "report": "A run as one HTML page.",
    "precision": "The same job in two dtypes or on two devices, compared.",
    "fitness": "Whether an SAE fits a model it was not trained on.",
    "rerun": "The job of a run again, from its manifest; is it the same?",
    "verify": "Whether a run is still what was published.",
}
_KEEP_NOTHING = {"plan", "scan", "steer", "bake", "export", "diff", "report", "verify"}
for verb, text in _COMMANDS.items():
    app.command(f"saescope.surfaces.cli.{verb}:{verb}", name=verb, help=text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line and exit with 0, 1 (a finding), 2 (one line says what is wrong) or 130."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        _check_config(Path(CONFIG))
        code = app(arguments, result_action="return_value")
        sys.stdout.flush()
        return FOUND if code == FOUND else DONE
    except (SaescopeError, CycloptsError) as error:
        return _refuse(str(error))
    except MemoryError as error:
        return _refuse(f"out of memory: {error or 'use fewer layers or a smaller --batch-tokens'}")
    except KeyboardInterrupt:
        kept = "what is finished is kept, the same command goes on from there"
        left = "nothing was written" if set(arguments[:1]) & _KEEP_NOTHING else kept
        print(f"saescope: interrupted; {left}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def _check_config(path: Path) -> None:
    """Refuse a file that is not TOML or has a key no command knows; what another command takes may stand in it."""
    if not path.is_file():
        return
    keys = _read_config(path).keys()
    options = (
        argument for verb in _COMMANDS for argument in app[verb].assemble_argument_collection()
    )
    known = {
        name.removeprefix("--").replace("-", "_") for argument in options for name in argument.names
    }
    for key in keys:
        if key.replace("-", "_") not in known:
            raise SaescopeError(
                f"{path}: no command has an option {key!r}; see saescope COMMAND --help"
            )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SaescopeError(f"{path} is not readable as TOML: {error}") from error


def _refuse(reason: str) -> int:
    print("saescope: " + " ".join(reason.split()), file=sys.stderr)
    return WRONG_USE
