"""Zip archives of unknown origin: what they say they hold is checked before any of it is unpacked.

torch.save and numpy.savez write zip archives. A few kilobytes can say, and unpack to,
terabytes.
"""

import errno
import zipfile
from pathlib import Path

from saescope.sources.machine import show_bytes
from saescope.sources.regular_files import UnreadableFileError, open_regular

_FREE_BYTES = 16 * 2**20  # what any archive may unpack to
_MOST_GROWTH = 10  # weights hardly shrink, text and zeros do
_MOST_PICKLE_BYTES = 16 * 2**20


def check_archive(path: Path, *, stored: bool = False, limit: int | None = None) -> None:
    """Raise UnreadableFileError if an archive unpacks to much more than the file has.

    `stored`: its members are read as they lie in the file, as torch does, so none may be compressed
    or reach beyond it. Raises BadZipFile and what else `zipfile` raises for a damaged archive.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    size = path.stat().st_size
    total = sum(member.file_size for member in members)
    most = size if stored else _FREE_BYTES + _MOST_GROWTH * size
    most = min(most, limit) if limit is not None else most
    if total > most:
        reason = f"it says it holds {show_bytes(total)}, but it has {show_bytes(size)}"
        raise UnreadableFileError(errno.EFBIG, reason, str(path))
    for member in members:
        if stored and member.compress_type != zipfile.ZIP_STORED:
            raise UnreadableFileError(errno.EINVAL, "its contents are compressed", str(path))
        if member.filename.endswith(".pkl") and member.file_size > _MOST_PICKLE_BYTES:
            reason = f"the description of its tensors has {show_bytes(member.file_size)}"
            raise UnreadableFileError(errno.EFBIG, reason, str(path))
