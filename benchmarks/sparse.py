"""Files in which long runs of zeros take no disk space."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, final

_PIECE = 2**20
_ZEROS = bytes(_PIECE)


@final
class SparseWriter:
    """An append-only file; each MiB of zeros becomes a hole, which reads as zeros."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        """Append and return the number of bytes."""
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            if piece == _ZEROS:
                self._file.seek(len(piece), 1)
            else:
                self._file.write(piece)
        return len(view)

    def flush(self) -> None:
        """Flush to the operating system."""
        self._file.flush()


@contextmanager
def sparse_file(path: Path) -> Iterator[SparseWriter]:
    """Open a new file for writing; it gets its name when it is complete."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        yield SparseWriter(file)
        file.truncate(file.tell())
    temporary.replace(path)
