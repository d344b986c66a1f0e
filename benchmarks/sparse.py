"""Files whose long runs of zeros take no disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, final

_PIECE = 2**20
_ZEROS = bytes(_PIECE)


@final
class SparseWriter:
    """A file that is written from beginning to end; whole pieces of zeros become holes, which read as zeros."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        """Append; returns the number of bytes."""
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            if piece == _ZEROS:
                self._file.seek(len(piece), 1)
            else:
                self._file.write(piece)
        return len(view)

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._file.flush()


@contextmanager
def sparse_file(path: Path) -> Iterator[SparseWriter]:
    """A new file to write, there under its name only once it is whole."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        yield SparseWriter(file)
        file.truncate(file.tell())
    temporary.replace(path)
