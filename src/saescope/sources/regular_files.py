"""Files of unknown origin: opened only if they are regular files, read only up to a limit.

A FIFO has no end and blocks whoever opens it, a device may have no end or do something when it is
opened. What declares its own size is checked by the reader of its format; the size of the file
itself is checked here, before memory is given.
"""

import errno
import os
import stat
from pathlib import Path
from typing import Any, final

from saescope.sources.machine import show_bytes
from saescope.strict_json import from_json

MOST_JSON_BYTES = 16 * 2**20
"Most bytes of a config or index: as objects of Python they need up to 25 times as much."
MOST_TEXT_BYTES = 2**31
"Most bytes of a file with a user's prompts."
_OPEN = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@final
class UnreadableFileError(OSError):
    """A path that is no regular file, or a file over the limit; its text is the reason alone."""

    def __str__(self) -> str:
        """The reason, without number and path."""
        return str(self.strerror)


def check_regular(path: Path) -> None:
    """Raise UnreadableFileError if there is something that is no regular file; OSError if nothing.

    For paths that another library opens.
    """
    _refuse_other_kinds(path, os.stat(path))


def open_regular(path: Path, buffering: int = -1) -> Any:
    """Open a file to read its bytes; raises UnreadableFileError unless it is a regular file."""
    check_regular(path)  # opening a device may already do something
    handle = os.open(path, _OPEN)
    try:
        _refuse_other_kinds(path, os.fstat(handle))  # it may have been replaced meanwhile
        return os.fdopen(handle, "rb", buffering)
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: Path, limit: int) -> bytes:
    """All bytes of a regular file; raises UnreadableFileError if there are more than `limit`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # A file that grows meanwhile, and one of /proc, say another size than they have.
        data = file.read(limit + 1) if size <= limit else b""
    size = max(size, len(data))
    if size > limit:
        reason = f"it has {show_bytes(size)}, more than {show_bytes(limit)}"
        raise UnreadableFileError(errno.EFBIG, reason, str(path))
    return data


def read_text(path: Path, limit: int = MOST_JSON_BYTES) -> str:
    """The text of a regular file in UTF-8; raises UnicodeDecodeError for other bytes."""
    return read_bytes(path, limit).decode("utf-8")


def read_json(path: Path, limit: int = MOST_JSON_BYTES) -> Any:
    """The values of a regular JSON file; raises ValueError for anything else."""
    return parse_json(read_bytes(path, limit))


def parse_json(data: bytes) -> Any:
    """The values of a JSON text; raises ValueError for anything else."""
    return from_json(data.decode("utf-8"))


def _refuse_other_kinds(path: Path, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kinds = (name for is_kind, name in _KINDS if is_kind(status.st_mode))
    reason = f"it is {next(kinds, 'something else')}, not a file"
    raise UnreadableFileError(errno.EINVAL, reason, str(path))
