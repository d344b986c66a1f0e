"""The `saescope` command. Commands are imported when called; nothing here needs torch."""

import inspect
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches

from cyclopts import App, Group

from saescope.errors import Interrupted, SaescopeError
from saescope.surfaces.cli.consoles import SafeLogRecord
from saescope.surfaces.cli.endings import finish, refuse, show_late_errors
from saescope.surfaces.cli.interrupts import how_to_go_on, terminate_as_interrupt
from saescope.surfaces.cli.naming import options_of
from saescope.surfaces.cli.options import HELP_GROUPS
from saescope.surfaces.cli.settings import check_settings, fill_from_settings
from saescope.surfaces.cli.streams import use_safe_streams
from saescope.version import __version__

GUIDE = """\
saescope finds the SAE features that stand for a behaviour of a language model,
steers them, and measures the effect. Try it on the model that comes with it:

  saescope demo                          the main job in half a minute
  saescope scan "The red dog sleeps."    features that fire on each token
  saescope contrast languages            features that set six languages apart

Then use your own prompts and model (saescope plan shows the download size):
  saescope contrast my/prompts --model Qwen/Qwen3-8B-Base --layers 17
saescope --help lists all commands.
"""


@dataclass(frozen=True)
class Command:
    """A verb, its line of help, and whether an interrupted call keeps what it has finished."""

    verb: str
    help: str
    resumes: bool = True


COMMANDS = {
    "Look": (
        Command("demo", "The main job on the embedded pair: scan, contrast, steer, report."),
        Command("scan", "Each token's strongest features.", resumes=False),
        Command("contrast", "Features that distinguish sets, confirmed on held-out prompts."),
        Command("layers", "Where sets separate best, and a concept's feature at each layer."),
        Command("profile", "Tokens, residual norms and sinks of prompt sets."),
        Command("detect", "Features that detect a behaviour, and a detector made of them."),
        Command("precision", "The same job in two dtypes or on two devices, compared."),
        Command("fitness", "Whether an SAE fits a model it was not trained on."),
    ),
    "Change": (
        Command("steer", "What a model writes with and without edits.", resumes=False),
        Command("select", "Which detected features to edit, by what changing them does."),
        Command("evaluate", "What edits do to a behaviour and to everything else."),
    ),
    "Keep": (
        Command("bake", "Edits put into weights that other programs load.", resumes=False),
        Command("export", "Edits, SAEs and runs as files of other programs.", resumes=False),
        Command("diff", "What changed between two checkpoints.", resumes=False),
    ),
    "Prepare": (
        Command("plan", "What a job downloads and holds in memory.", resumes=False),
        Command("fetch", "Download the files a job needs, and no others."),
    ),
    "Serve": (Command("serve", "OpenAI's API with steering, for your programs.", resumes=False),),
    "Runs": (
        Command("report", "A run as one HTML page.", resumes=False),
        Command("rerun", "The job of a run again, from its manifest: is it the same?"),
        Command("verify", "Whether a run is still what was published.", resumes=False),
    ),
}


def _commands() -> Iterator[Command]:
    for commands in COMMANDS.values():
        yield from commands


app = App(
    name="saescope",
    help="Find the SAE features behind a behaviour, change them, and measure what that did.",
    version=__version__,
    config=fill_from_settings,
    group_arguments=HELP_GROUPS["Arguments"],
    group_parameters=HELP_GROUPS["Arguments"],
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    help_format="plaintext",
)
for position, (title, commands) in enumerate(COMMANDS.items()):
    group = Group(title, sort_key=position)
    for rank, command in enumerate(commands):
        verb = command.verb
        target = f"saescope.surfaces.cli.{verb}:{verb}"  # imported when the command is called
        app.command(target, name=verb, help=command.help, group=group, sort_key=rank)


@app.default
def _guide() -> None:
    """Print three commands to try."""
    print(GUIDE, end="")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line and exit with the code that `run` returns."""
    show_late_errors()
    # What saescope does not use of a checkpoint it says itself, in one line.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        use_safe_streams()
        logging.setLogRecordFactory(SafeLogRecord)
        with terminate_as_interrupt():
            code = run(sys.argv[1:] if arguments is None else arguments)
    except SaescopeError as error:
        code = refuse(error)
    # The result is out: a key pressed now ends the program, without a traceback of its clean-up.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    0: done. 1: done, but the answer is negative (verify, rerun, plan). 2: bad input, or an error.
    130: interrupted. 141: nobody reads stdout.
    """
    keeps_nothing = {command.verb for command in _commands() if not command.resumes}
    keeps_work = keeps_nothing.isdisjoint(arguments[:1])

    def command() -> int | None:
        _check_command(arguments)
        check_settings(_known_options)
        try:
            with _long_help(arguments):
                code: int | None = app(arguments, result_action="return_value")
        except KeyboardInterrupt as error:
            raise Interrupted(how_to_go_on(arguments, error, keeps_work)) from error
        return code

    verbs = {command.verb for command in _commands()}.intersection(arguments[:1])
    with options_of((lambda: app[arguments[0]]) if verbs else None):
        return finish(command, keeps_work)


def _check_command(arguments: Sequence[str]) -> None:
    """Refuse an unknown command."""
    verb = next(iter(arguments), "-")
    verbs = [command.verb for command in _commands()]
    if not verb.startswith("-") and verb not in verbs:
        similar = get_close_matches(verb, verbs, n=1)
        hint = f"did you mean {similar[0]}?" if similar else "see saescope --help"
        raise SaescopeError(f"unknown command {verb!r}: {hint}")


@contextmanager
def _long_help(arguments: Sequence[str]) -> Iterator[None]:
    """Within the context, a command whose help is asked for has its long one, not its line."""
    verbs = {command.verb for command in _commands()}.intersection(arguments[:1])
    if not verbs or not {"--help", "-h"}.intersection(arguments):
        yield
        return
    command = app[arguments[0]]
    line = command.help
    command.help = inspect.getdoc(command.default_command) or line
    try:
        yield
    finally:
        command.help = line


def _known_options() -> Set[str]:
    """Return the options of all commands, written with underscores."""
    return {
        name.removeprefix("--").replace("-", "_")
        for command in _commands()
        for argument in app[command.verb].assemble_argument_collection()
        for name in argument.names
    }
