"""Vectors of a GGUF file, the container of llama.cpp; read without a library.

Format: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3. Every size in the file is checked
against the bytes that are there, so a damaged file is refused before memory is taken for it.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saescope.errors import SourceError
from saescope.sources.regular_files import read_bytes

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT = "general.alignment", 32
_MAX_DIMENSIONS = 4
_MAX_FILE_BYTES = 2**28  # of a control vector
# Numbers of types in GGUF. Values: struct formats of the scalars, then strings and arrays.
_SCALARS = dict(enumerate(["B", "b", "H", "h", "I", "i", "f", "?"])) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TENSORS: Mapping[int, str] = {0: "<f4", 1: "<f2", 28: "<f8", 30: "bfloat16"}
Vector = Callable[[], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class GgufFile:
    """Metadata of a GGUF file, and its tensors by name, each decoded when it is called."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Vector]


def read_gguf(path: Path) -> GgufFile:
    """Read a whole GGUF file; raises SourceError if it is damaged or of another version."""
    reader = _Reader(path, read_bytes(path, _MAX_FILE_BYTES))
    if reader.take(4) != _MAGIC:
        raise SourceError(f"{path} is not a GGUF file")
    version = reader.scalar("I")
    if version not in _VERSIONS:
        raise SourceError(f"{path} is GGUF of version {version}: only 2 and 3 are read")
    n_tensors, n_values = reader.scalar("Q"), reader.scalar("Q")
    metadata = {}
    for _ in range(reader.count(n_values)):
        key = reader.text()
        metadata[key] = reader.value(reader.scalar("I"))
    infos = [_TensorInfo.read(reader) for _ in range(reader.count(n_tensors))]
    alignment = metadata.get(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise reader.damaged()
    start = -(-reader.position // alignment) * alignment
    tensors = {info.name: partial(_decode, reader, info, start + info.offset) for info in infos}
    return GgufFile(metadata, tensors)


@dataclass(frozen=True)
class _TensorInfo:
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @classmethod
    def read(cls, reader: "_Reader") -> "_TensorInfo":
        name = reader.text()
        n_dimensions = reader.scalar("I")
        if n_dimensions > _MAX_DIMENSIONS:
            raise reader.damaged()
        shape = tuple(int(reader.scalar("Q")) for _ in range(n_dimensions))
        return cls(name, shape[::-1], int(reader.scalar("I")), int(reader.scalar("Q")))


def _decode(reader: "_Reader", info: _TensorInfo, start: int) -> npt.NDArray[np.float32]:
    dtype = _TENSORS.get(info.type)
    if dtype is None:
        raise SourceError(f"{info.name} is quantised (GGUF type {info.type}): export it as F32")
    n = 1
    for size in info.shape:
        n *= size
    width = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    data = reader.slice(start, n * width)
    if dtype == "bfloat16":
        return bfloat16_to_float32(data).reshape(info.shape)
    with np.errstate(over="ignore"):  # becomes infinite, which Direction refuses
        return np.frombuffer(data, dtype).astype(np.float32).reshape(info.shape)


def bfloat16_to_float32(data: bytes | bytearray) -> npt.NDArray[np.float32]:
    """The float32 numbers whose upper halves these bytes are."""
    upper_halves = np.frombuffer(data, "<u2").astype(np.uint32)
    return (upper_halves << 16).view(np.float32)


class _Reader:
    """The bytes of a file, taken from front to back."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.data = data
        self.position = 0

    def slice(self, start: int, size: int) -> bytes:
        if start + size > len(self.data):
            raise self.damaged()
        return self.data[start : start + size]

    def take(self, size: int) -> bytes:
        taken = self.slice(self.position, size)
        self.position += size
        return taken

    def scalar(self, kind: str) -> Any:
        layout = struct.Struct(f"<{kind}")
        [value] = layout.unpack(self.take(layout.size))
        return value

    def count(self, n: int) -> int:
        """A number of items, refused if the rest of the file cannot hold as many."""
        if n > len(self.data) - self.position:
            raise self.damaged()
        return n

    def text(self) -> str:
        try:
            return self.take(self.scalar("Q")).decode()
        except UnicodeDecodeError as error:
            raise self.damaged() from error

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            if kind not in _SCALARS:
                raise self.damaged()
            return self.scalar(_SCALARS[kind])
        item_kind = self.scalar("I")
        if item_kind == _ARRAY:  # the format allows it, no program writes it
            raise self.damaged()
        return [self.value(item_kind) for _ in range(self.count(self.scalar("Q")))]

    def damaged(self) -> SourceError:
        return SourceError(f"{self.path} is a damaged or truncated GGUF file: fetch it again")
