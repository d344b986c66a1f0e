"""How a command ends: an exit code and, unless all went well, one line on stderr.

`SAESCOPE_DEBUG=1` shows the traceback before the line.
"""

import errno
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from cyclopts import CycloptsError, UnknownOptionError, UnusedCliTokensError

from saescope.errors import CheckpointWarning, SaescopeError
from saescope.surfaces.cli.naming import message_of
from saescope.surfaces.cli.streams import drop_output
from saescope.surfaces.visible import visible

# 1 is a command's own: a finding that was asked for.
DONE, REFUSED, INTERRUPTED, CLOSED_PIPE = 0, 2, 130, 141
DEBUG = "SAESCOPE_DEBUG"
_HINT = f"{DEBUG}=1 shows the traceback"
_PACKAGE = Path(__file__).parents[2]
# Arguments and variables of the package that hold the file it is at work on.
_NAMES_OF_FILES = ("path", "file", "folder", "place")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a path of the user can be, besides right.
_ORDINARY = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_SIMILAR = 0.8  # of an option and a misspelling of it
# A value of many pages is not repeated whole.
_LONGEST = 1000
_KEPT = "finished work is kept; run the same command to resume"


def finish(command: Callable[[], int | None], keeps_work: bool) -> int:
    """Run a command and return its exit code. `keeps_work`: the same command resumes it."""
    try:
        with _one_line_each() as failures:
            code = command()
            sys.stdout.flush()
        return REFUSED if failures else code or DONE
    except KeyboardInterrupt as error:
        kept = _KEPT if keeps_work else "nothing was written"
        _print_line(f"interrupted; {str(error) or kept}")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout, such as head, has seen enough
        drop_output()
        return CLOSED_PIPE
    except SystemExit as error:
        return _exited(error)
    except BaseException as error:
        return refuse(error, keeps_work)


def refuse(error: BaseException, keeps_work: bool = False) -> int:
    """Print the line of an error and return its exit code."""
    drop_output_if_unwritable()
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
    _print_line(one_line(error, keeps_work))
    return REFUSED


def drop_output_if_unwritable() -> None:
    """Write what stdout still holds, or drop it if that is impossible."""
    try:
        sys.stdout.flush()
    except (OSError, SaescopeError, ValueError):
        drop_output()


def one_line(error: BaseException, keeps_work: bool = False) -> str:
    """Describe any exception in one line: what happened, in which file, and what to do."""
    if isinstance(error, CycloptsError):
        return _misused(error)
    if isinstance(error, SaescopeError):
        return message_of(error)
    if _is_out_of_memory(error):
        return _out_of_memory(error)
    if isinstance(error, RecursionError):
        where = _file_of(error)
        return f"something{_at(where)} is nested too deeply to be read; {_HINT}"
    if isinstance(error, OSError):
        return _os_error(error, keeps_work)
    if isinstance(error, UnicodeError):
        return f"text{_at(_file_of(error))} is not readable as UTF-8: {error}; {_HINT}"
    kind, reason = type(error).__name__, _first_line(error)
    return f"unexpected {kind}{_at(_file_of(error))}: {reason}; {_HINT}"


def _misused(error: CycloptsError) -> str:
    """Say which word of a command line is wrong, and only propose what is nearly that word."""
    usage = " ".join(["saescope", *(error.command_chain or ()), "--help"])
    if isinstance(error, UnknownOptionError) and error.token.source == "cli":
        option = (error.token.keyword or error.token.value).partition("=")[0]
        known = [name for argument in error.argument_collection for name in argument.names]
        similar = get_close_matches(option, known, n=1, cutoff=_SIMILAR)
        hint = f"did you mean {similar[0]}?" if similar else f"see {usage}"
        return f"unknown option {option}: {hint}"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return (
            f"unexpected argument {error.unused_tokens[0]!r}: quote a text that holds spaces, "
            f"repeat an option for each of its values; see {usage}"
        )
    return message_of(error)


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out. torch, which may not be imported yet, has its own errors."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _out_of_memory(error: BaseException) -> str:
    reason = _first_line(error)
    known = reason not in (type(error).__name__, "")
    details = f" ({reason})" if known else ""
    return (
        f"out of memory{details}: use fewer layers, a smaller --batch-tokens, or --memory to run "
        f"the model block by block; {_HINT}"
    )


def _os_error(error: OSError, keeps_work: bool) -> str:
    named = error.filename if isinstance(error.filename, str | bytes) else None
    path = os.fsdecode(named) if named else _file_of(error)
    reason = error.strerror or _first_line(error)
    if error.errno in _FULL:
        after = _KEPT if keeps_work else "then run the same command again"
        return f"cannot write{_at(path, '')}: {reason}; free some space; {after}"
    if isinstance(error, PermissionError):
        return f"{path or 'a file'} cannot be read or written: {reason}; check its permissions"
    if error.errno == errno.ENAMETOOLONG:
        return f"{path or 'a path'}: the name is too long: give a shorter one"
    if path is not None and isinstance(error, _ORDINARY):
        return f"{path}: {reason}"
    return f"unexpected {type(error).__name__}{_at(path)}: {reason}; {_HINT}"


def _file_of(error: BaseException) -> str | None:
    """Return the file that the package was at work on, from the innermost frame that names one."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        if not Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
            continue
        for name in _NAMES_OF_FILES:
            value = frame.f_locals.get(name)
            if isinstance(value, Path):
                return str(value)
    return None


def _at(path: str | None, word: str = " in") -> str:
    return f"{word} {path}" if path else ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _exited(error: SystemExit) -> int:
    """Return the exit code of something that ended the program: rich at a closed pipe, or a judge.

    Whoever ends the program before the command is done leaves no result, so 0 is not possible.
    """
    if isinstance(error.__context__, BrokenPipeError):
        drop_output()
        return CLOSED_PIPE
    return refuse(SaescopeError(f"the program was ended by exit({error.code!r}); {_HINT}"))


@contextmanager
def _one_line_each() -> Iterator[list[BaseException]]:
    """Within the context, warnings and errors of threads and of clean-up are one line each.

    Yields the errors of threads.
    """
    failures: list[BaseException] = []

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and args.exc_type is not SystemExit:
            if not failures:  # one line, however many threads failed
                refuse(args.exc_value)
            failures.append(args.exc_value)

    thread_hook, unraisable_hook = threading.excepthook, sys.unraisablehook
    threading.excepthook = in_thread
    sys.unraisablehook = _show_unraisable
    try:
        with _warnings_as_lines():
            yield failures
    finally:
        threading.excepthook, sys.unraisablehook = thread_hook, unraisable_hook


def show_late_errors() -> None:
    """Let errors after the command, while the interpreter exits, be one line each too."""
    sys.excepthook = _show_uncaught
    warnings.showwarning = _ShowsWarnings()
    sys.unraisablehook = _show_unraisable


def _show_uncaught(
    _kind: type[BaseException], error: BaseException, _traceback: TracebackType | None
) -> None:
    refuse(error)


def _show_unraisable(unraisable: Any) -> None:
    error = unraisable.exc_value
    if error is None or isinstance(error, BrokenPipeError | KeyboardInterrupt):
        return
    _print_line(f"warning: {one_line(error)}")


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Within the context, each warning is one line on stderr, shown once."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", CheckpointWarning)
        warnings.showwarning = _ShowsWarnings()
        yield


class _ShowsWarnings:
    """Prints each warning once."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = f"warning: {message}"
        if not issubclass(category, CheckpointWarning):
            text = f"warning: {category.__name__}: {message}"
        if text not in self._shown:
            _print_line(text, file)
        self._shown.add(text)


def _print_line(text: str, file: TextIO | None = None) -> None:
    line = visible(" ".join(text.split()))
    if len(line) > _LONGEST:
        line = line[: _LONGEST - 1] + "…"
    print(f"saescope: {line}", file=file or sys.stderr, flush=True)
