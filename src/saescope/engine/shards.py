"""A checkpoint's tensors as they are stored, mapped from their files and not converted."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from saescope.errors import SourceError, first_line
from saescope.sources.checkpoint import read_index
from saescope.sources.files import Files

# Bytes a value of the dtypes that weights come in (safetensors' names).
WIDTHS: Mapping[str, int] = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: its file, its first byte there, and what its bytes are."""

    shard: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


@final
class Shards:
    """All tensors of a checkpoint by name, in the order of their files."""

    def __init__(
        self, files: Files, places: Mapping[str, Place], metadata: Mapping[str, Mapping[str, str]]
    ) -> None:
        self.files = files
        self.places = places
        self.metadata = metadata
        self._opened: dict[str, Any] = {}

    @classmethod
    def open(cls, files: Files) -> "Shards":
        """Read every file's header; raises SourceError for one that is missing or damaged."""
        shard_of, _ = read_index(files)
        places: dict[str, Place] = {}
        metadata: dict[str, Mapping[str, str]] = {}
        for shard in sorted(set(shard_of.values())):
            if Path(shard).name != shard:
                raise SourceError(
                    f"{files.name}: its index names a file in another folder: {shard!r}"
                )
            metadata[shard], own = _read_header(files.path(shard), shard)
            places |= own
        if missing := shard_of.keys() - places.keys():
            raise SourceError(f"{files.name} has no tensor {min(missing)}, as its index says")
        return cls(files, places, metadata)

    @property
    def names(self) -> list[str]:
        """The files."""
        return list(self.metadata)

    @property
    def bytes(self) -> int:
        """What all tensors take."""
        return sum(place.bytes for place in self.places.values())

    def within(self, shard: str) -> Iterator[tuple[str, Place]]:
        """The tensors of one file, as they follow one another."""
        own = ((name, place) for name, place in self.places.items() if place.shard == shard)
        return iter(sorted(own, key=lambda item: (item[1].start, item[1].bytes)))

    def tensor(self, name: str) -> Tensor:
        """One tensor, a view of its file: it must not be written to."""
        place = self.places[name]
        try:
            if place.shard not in self._opened:
                self._opened[place.shard] = safe_open(self.files.path(place.shard), framework="pt")
            tensor: Tensor = self._opened[place.shard].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise SourceError(
                f"{place.shard} does not give tensor {name}: {first_line(error)}"
            ) from error
        return tensor


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
