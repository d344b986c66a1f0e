"""A checkpoint's tensors in their stored dtypes, memory-mapped from its safetensors files."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from saescope.errors import SourceError, first_line
from saescope.sources.checkpoint import read_index
from saescope.sources.files import Files

# Bytes per value of floating-point dtypes, by their safetensors names.
WIDTHS: Mapping[str, int] = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}


@dataclass(frozen=True)
class Place:
    """Where a tensor is stored: its shard and first byte there, its dtype and its shape."""

    shard: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    n_bytes: int

    @property
    def numel(self) -> int:
        """The number of values."""
        return prod(self.shape)


@final
class TensorReader:
    """Stored tensors by name, each a view of its file. A shard is opened when first needed."""

    def __init__(self, files: Files, shard_of: Mapping[str, str]) -> None:
        self.files = files
        self.shard_of = shard_of
        self._opened: dict[str, Any] = {}
        self._stack = ExitStack()

    def read(self, name: str) -> Tensor:
        """Return a tensor: do not write to it. Raises SourceError if its shard is damaged."""
        shard = self.shard_of[name]
        if shard not in self._opened:
            self._opened[shard] = self._stack.enter_context(_open_shard(self.files.path(shard)))
        try:
            tensor: Tensor = self._opened[shard].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise SourceError(
                f"{shard} does not give tensor {name}: {first_line(error)}"
            ) from error
        return tensor

    def close(self) -> None:
        """Read nothing more; tensors that were read stay mapped."""
        self._stack.close()


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path} is damaged or truncated: {first_line(error)}") from error


@final
class Shards:
    """All tensors of a checkpoint by name, in the order of its shards."""

    def __init__(
        self, files: Files, places: Mapping[str, Place], metadata: Mapping[str, Mapping[str, str]]
    ) -> None:
        self.files = files
        self.places = places
        self.metadata = metadata
        self._reader = TensorReader(files, {name: place.shard for name, place in places.items()})

    @classmethod
    def open(cls, files: Files) -> "Shards":
        """Read every shard's header; raise SourceError for one that is missing or damaged."""
        shard_of, _ = read_index(files)
        places: dict[str, Place] = {}
        metadata: dict[str, Mapping[str, str]] = {}
        for shard in sorted(set(shard_of.values())):
            metadata[shard], header = _read_header(files.path(shard), shard)
            places |= header
        if missing := shard_of.keys() - places.keys():
            raise SourceError(f"{files.name} lacks tensor {min(missing)}, which its index lists")
        return cls(files, places, metadata)

    @property
    def shard_names(self) -> list[str]:
        """The file names of the shards."""
        return list(self.metadata)

    @property
    def n_bytes(self) -> int:
        """The size of all tensors."""
        return sum(place.n_bytes for place in self.places.values())

    def within(self, shard: str) -> Iterator[tuple[str, Place]]:
        """Return the names and places of one shard's tensors, in file order."""
        tensors = ((name, place) for name, place in self.places.items() if place.shard == shard)
        return iter(sorted(tensors, key=lambda item: (item[1].start, item[1].n_bytes)))

    def tensor(self, name: str) -> Tensor:
        """Return a tensor as a view of its file: do not write to it."""
        return self._reader.read(name)


def _read_header(path: Path, shard: str) -> tuple[dict[str, str], dict[str, Place]]:
    try:
        with safe_open(path, framework="pt"):  # it checks lengths, overlaps and holes
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise SourceError(f"{path} is damaged or truncated: {first_line(error)}") from error
    metadata = header.pop("__metadata__", None) or {}
    places = {}
    for name, about in header.items():
        start, end = about["data_offsets"]
        places[name] = Place(
            shard, about["dtype"], tuple(about["shape"]), 8 + length + start, end - start
        )
    return metadata, places
