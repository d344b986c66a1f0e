"""Where the tensors of a file lie: safetensors, zip archives (.pt, .npz), GGUF, anything else."""

import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from saescope.sources.regular_files import open_regular, parse_json

_MALFORMED = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, EOFError),
    *(OverflowError, RecursionError),
)
_LARGEST_HEADER = 100 * 10**6  # the limit of the safetensors library
_PLAIN_PARTS = 64
_NPY_HEADER = 128  # of arrays with up to three dimensions


@dataclass(frozen=True)
class Part:
    """A range of a file: one tensor, or if `in_full` what describes tensors."""

    start: int
    bytes: int
    in_full: bool = False


def file_parts(path: Path) -> list[Part]:
    """The file's tensors, in order of position and without overlaps.

    A file of another format, or one that cannot be read as what it seems to be, is cut into equal
    parts: whoever loads it says what is wrong with it.
    """
    size = path.stat().st_size
    with open_regular(path) as file:
        start = file.read(9)
        file.seek(0)
        try:
            starts = _finder(start)(file, size)
        except (*_MALFORMED, zipfile.BadZipFile, NotImplementedError):
            starts = _equal_parts(file, size)
    return _ordered(starts, size)


def tensor_sizes(path: Path) -> list[int]:
    """Bytes of each tensor of a safetensors file or zip archive; empty for any other file."""
    size = path.stat().st_size
    with open_regular(path) as file:
        start = file.read(9)
        file.seek(0)
        try:
            if start[:4] == b"PK\x03\x04":
                with zipfile.ZipFile(file) as archive:
                    return [_tensor_bytes(info) for info in archive.infolist()]
            if start[8:9] == b"{":
                return [part.bytes for part in _safetensors_parts(file, size)]
        except (*_MALFORMED, zipfile.BadZipFile, NotImplementedError):
            return []
    return []


def _tensor_bytes(info: zipfile.ZipInfo) -> int:
    """Bytes of the tensor in an entry; arrays of NumPy begin with a header."""
    header = _NPY_HEADER if info.filename.endswith(".npy") else 0
    return max(0, info.file_size - header)


def _finder(start: bytes) -> Callable[[BinaryIO, int], list[Part]]:
    if start[:4] == b"PK\x03\x04":
        return _zip_parts
    if start[:4] == b"GGUF":
        return _gguf_parts
    if start[8:9] == b"{":
        return _safetensors_parts
    return _equal_parts


def _ordered(parts: Sequence[Part], size: int) -> list[Part]:
    """The parts by position; one that overlaps an earlier one is cut, so each byte counts once."""
    ordered, end = [], 0
    for part in sorted(parts, key=lambda part: (part.start, part.bytes)):
        start = max(part.start, end)
        stop = min(part.start + part.bytes, size)
        if stop > start:
            ordered.append(Part(start, stop - start))
            end = stop
    return ordered


def _safetensors_parts(file: BinaryIO, size: int) -> list[Part]:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(_LARGEST_HEADER, size - 8):
        raise ValueError("the header is longer than the file")
    header = parse_json(file.read(length))
    header.pop("__metadata__", None)
    offsets = [tensor["data_offsets"] for tensor in header.values()]
    return [Part(8 + length + start, end - start) for start, end in offsets]


def _zip_parts(file: BinaryIO, size: int) -> list[Part]:
    """The archive's entries; its directory, with a CRC-32 per entry, lies behind them."""
    with zipfile.ZipFile(file) as archive:
        starts = sorted(info.header_offset for info in archive.infolist())
        return _between([*starts, archive.start_dir])


def _equal_parts(file: BinaryIO, size: int) -> list[Part]:
    return _between([size * i // _PLAIN_PARTS for i in range(_PLAIN_PARTS + 1)])


def _between(starts: Sequence[int]) -> list[Part]:
    return [Part(start, end - start) for start, end in pairwise(starts)]


def gguf_numbers(path: Path) -> dict[str, int]:
    """The whole numbers in a GGUF file's metadata by name.

    Raises ValueError if the file is no GGUF, or says that it holds more than it has bytes for.
    """
    size = path.stat().st_size
    with open_regular(path) as file:
        if file.read(4) != b"GGUF":
            raise ValueError("it is no GGUF file")
        try:
            numbers: dict[str, int] = {}
            parts = _gguf_parts(file, size, numbers)
        except _MALFORMED as error:
            raise ValueError("it ends too early, or says so") from error
    if any(part.bytes < 0 or part.start + part.bytes > size for part in parts):
        raise ValueError("a tensor lies beyond its end")
    return numbers


# Bytes of GGUF's value types by number; strings and arrays (8 and 9) say their own length.
_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_STRING, _GGUF_ARRAY, _GGUF_UINT32 = 8, 9, 4
_GGUF_WHOLE = {0: "<B", 2: "<H", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}


def _gguf_parts(
    file: BinaryIO, size: int, whole_numbers: dict[str, int] | None = None
) -> list[Part]:
    """The file's tensors; whole numbers of its metadata are added to `whole_numbers`."""
    reader = _GgufReader(file, size)
    file.seek(8)  # the format's name and version
    n_tensors, n_values = reader.numbers("<QQ")
    alignment = 32
    for _ in range(n_values):
        key = reader.string()
        (kind,) = reader.numbers("<I")
        if kind in _GGUF_WHOLE:
            (number,) = reader.numbers(_GGUF_WHOLE[kind])
            if whole_numbers is not None:
                whole_numbers[key.decode(errors="replace")] = number
            if key == b"general.alignment" and kind == _GGUF_UINT32:
                alignment = number
        else:
            reader.skip_value(kind)
    offsets = sorted(reader.tensor_offset() for _ in range(n_tensors))
    data = -(-file.tell() // max(1, alignment)) * alignment
    return _between([*(data + offset for offset in offsets), size])


@dataclass(frozen=True)
class _GgufReader:
    file: BinaryIO
    size: int

    def numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.file.read(struct.calcsize(form)))

    def string(self) -> bytes:
        (length,) = self.numbers("<Q")
        if length > self.size:
            raise ValueError("a string is longer than the file")
        return self.file.read(length)

    def skip_value(self, kind: int) -> None:
        if kind == _GGUF_STRING:
            self.string()
        elif kind == _GGUF_ARRAY:
            item, count = self.numbers("<IQ")
            if item in _GGUF_SIZES:
                self.file.seek(count * _GGUF_SIZES[item], 1)
                return
            for _ in self._at_most(count):
                self.skip_value(item)
        else:
            self.file.seek(_GGUF_SIZES[kind], 1)

    def tensor_offset(self) -> int:
        self.string()
        (n_dimensions,) = self.numbers("<I")
        self.file.seek(8 * n_dimensions + 4, 1)  # sizes and type
        (offset,) = self.numbers("<Q")
        return offset

    def _at_most(self, count: int) -> Iterator[int]:
        if count > self.size:
            raise ValueError("an array has more items than the file has bytes")
        return iter(range(count))
