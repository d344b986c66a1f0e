"""Standard streams that show any text, and that never lose a result without an error.

A closed descriptor would go to the next file that is opened, so the null device takes its place.
"""

import io
import os
import sys
from typing import Any, final

from saescope.errors import SaescopeError

_STDIN, _STDOUT, _STDERR = 0, 1, 2


class OutputError(SaescopeError):
    """Standard output that takes no more text."""


def use_safe_streams() -> None:
    """Replace stdout and stderr by streams that escape what their encoding cannot represent.

    Raises OutputError if stdout is closed: the result could be shown to nobody.
    """
    closed = [descriptor for descriptor in (_STDIN, _STDOUT, _STDERR) if _is_closed(descriptor)]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
    if sys.stdin is None:
        sys.stdin = open(_STDIN, encoding="utf-8", closefd=False)  # noqa: SIM115
    if _leads_to(_STDERR, sys.stderr):
        sys.stderr = _text(_Notes(_STDERR, "w", closefd=False), sys.stderr, line_buffering=True)
    if _leads_to(_STDOUT, sys.stdout):
        sys.stdout = _text(_Results(_STDOUT, "w", closefd=False), sys.stdout)
    if _STDOUT in closed:
        raise OutputError("stdout is closed, so no result can be shown: send it to a file instead")


def drop_output() -> None:
    """Send what stdout still holds to nowhere, so that the interpreter can exit without an error.

    Does nothing for a stream that has no descriptor, as in a notebook.
    """
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


@final
class _Results(io.FileIO):
    """Stdout. A reader that has seen enough raises BrokenPipeError; a full disk is one line."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(
                f"cannot write the whole result to stdout: {error.strerror}; "
                "send it to another place and run the same command again"
            ) from error


@final
class _Notes(io.FileIO):
    """Stderr. Notes that nobody can read do not stop the work."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _leads_to(descriptor: int, stream: Any) -> bool:
    """Whether a stream writes to a descriptor; a program may have put one of its own in place."""
    if stream is None:  # Python's stream of a descriptor that was closed
        return True
    try:
        return int(stream.fileno()) == descriptor
    except (AttributeError, OSError, ValueError):
        return False


def _is_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


def _text(raw: io.FileIO, replaced: object, *, line_buffering: bool = False) -> Any:
    """Return a text stream with the encoding of the stream that it replaces."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(replaced, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=line_buffering or raw.isatty(),
    )
