"""Write a checkpoint with some tensors updated: with the same sharding, one tensor at a time.

Tensors that do not change are copied as raw bytes.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from saescope.control.baking.weight_update import RoundingSums, WeightUpdate, apply_update
from saescope.engine.pages import mapped_pages, release_pages
from saescope.engine.shards import WIDTHS, Place, Shards
from saescope.errors import SourceError
from saescope.sources.checkpoint import INDEX

_WRITE_BYTES = 2**18  # per call: larger writes took four times as long on ext4
_HEADER_ALIGNMENT = 8  # bytes, of the safetensors format
_TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}


@dataclass(frozen=True)
class RoundingLoss:
    """What rounding to the stored dtype lost of one tensor's intended change."""

    tensor: str

    fraction_lost: float
    """|intended − stored| / |intended|, for components along the direction.

    For a projection of strength 1 it is the fraction of the component that survives.
    """


@dataclass(frozen=True)
class NewTensor:
    """A tensor that the checkpoint lacks, written into the shard of the tensor `same_shard_as`.

    It is an updated copy of the tensor `copy_of`, or has a shape and values (None: zeros).
    """

    name: str
    same_shard_as: str
    copy_of: str | None = None
    update: WeightUpdate | None = None
    shape: tuple[int, ...] = ()
    values: Tensor | None = None


@dataclass(frozen=True)
class CheckpointChanges:
    """Updates by tensor name, new tensors, and names of dropped tensors."""

    updates: Mapping[str, WeightUpdate] = field(default_factory=dict)
    new: Sequence[NewTensor] = ()
    dropped: Sequence[str] = ()

    @property
    def updated_tensors(self) -> Iterator[str]:
        """Stored tensors that are updated or copied."""
        yield from self.updates
        for tensor in self.new:
            if tensor.copy_of is not None:
                yield tensor.copy_of


def write_checkpoint(
    shards: Shards,
    out: Path,
    changes: CheckpointChanges,
    progress: Callable[[int, int], None] | None = None,
) -> list[RoundingLoss]:
    """Write every shard into `out` with the changes, and the index if there is one.

    Returns the rounding loss of each updated tensor. `progress` is called with the bytes written
    and the total. Raises SourceError for an update of a
    tensor that does not hold floating point numbers.
    """
    for name in changes.updated_tensors:
        dtype = shards.places[name].dtype
        if dtype not in WIDTHS:
            raise SourceError(
                f"{shards.files.name}: {name} is stored as {dtype}, which edits do not support"
            )
    losses: list[RoundingLoss] = []
    done, total = 0, output_bytes(shards, changes)
    for shard in shards.shard_names:
        tensors = _tensors_of(shards, shard, changes)
        with (out / shard).open("wb") as file:
            file.write(_header(shards.metadata[shard], tensors))
            for tensor in tensors:
                losses += _write_tensor(file, shards, tensor)
                done += tensor.place.n_bytes
                if progress is not None:
                    progress(done, total)
    if INDEX in shards.files.names():
        _write_index(shards, out / INDEX, changes)
    return losses


def output_bytes(shards: Shards, changes: CheckpointChanges) -> int:
    """Return the bytes that the tensors will take on disk."""
    added = sum(_place_of(shards, tensor).n_bytes for tensor in changes.new)
    dropped = sum(shards.places[name].n_bytes for name in changes.dropped)
    return shards.n_bytes + added - dropped


@dataclass(frozen=True)
class _OutputTensor:
    """A tensor to write: from the stored tensor `source`, or (None) from its values."""

    name: str
    place: Place
    source: str | None
    update: WeightUpdate | None
    values: Tensor | None = None


def _tensors_of(shards: Shards, shard: str, changes: CheckpointChanges) -> list[_OutputTensor]:
    """Return the tensors of one output shard, in their order there."""
    tensors = []
    for name, place in shards.within(shard):
        if name not in changes.dropped:
            tensors.append(_OutputTensor(name, place, name, changes.updates.get(name)))
    for new in changes.new:
        if shards.places[new.same_shard_as].shard == shard:
            place = _place_of(shards, new)
            tensors.append(_OutputTensor(new.name, place, new.copy_of, new.update, new.values))
    return tensors


def _place_of(shards: Shards, new: NewTensor) -> Place:
    template = shards.places[new.copy_of or new.same_shard_as]
    shape = template.shape if new.copy_of else new.shape
    n_bytes = prod(shape) * WIDTHS[template.dtype]
    return Place(template.shard, template.dtype, shape, start=0, n_bytes=n_bytes)


def _header(metadata: Mapping[str, str], tensors: Sequence[_OutputTensor]) -> bytes:
    """Return the header of a safetensors file: its length, then padded JSON."""
    header: dict[str, Any] = {"__metadata__": dict(metadata) or {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.place.n_bytes
        header[tensor.name] = {
            "dtype": tensor.place.dtype,
            "shape": list(tensor.place.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(file: BinaryIO, shards: Shards, tensor: _OutputTensor) -> list[RoundingLoss]:
    """Write one tensor; return its rounding loss if it was updated."""
    if tensor.source is None:
        values = torch.zeros(tensor.place.shape) if tensor.values is None else tensor.values
        _write_values(file, values.to(_TORCH_DTYPES[tensor.place.dtype]))
        return []
    if tensor.update is None:
        _copy_bytes(shards, shards.places[tensor.source], file)
        return []
    stored = shards.tensor(tensor.source)
    sums = RoundingSums()
    for chunk in apply_update(stored, tensor.update, sums):
        _write_values(file, chunk)
    release_pages(mapped_pages([stored]))
    if sums.intended_sq == 0:
        return []
    return [RoundingLoss(tensor.name, sums.fraction_lost)]


def _write_values(file: BinaryIO, tensor: Tensor) -> None:
    """Write a tensor's raw bytes."""
    raw_bytes = tensor.contiguous().view(torch.uint8).reshape(-1)
    values = memoryview(raw_bytes.numpy().data)
    for start in range(0, len(values), _WRITE_BYTES):
        file.write(values[start : start + _WRITE_BYTES])


def _copy_bytes(shards: Shards, place: Place, target: BinaryIO) -> None:
    path = shards.files.path(place.shard)
    buffer = memoryview(bytearray(_WRITE_BYTES))
    with path.open("rb", buffering=0) as file:
        file.seek(place.start)
        remaining = place.n_bytes
        while remaining:
            n_read = file.readinto(buffer[: min(remaining, len(buffer))])
            if not n_read:
                raise SourceError(f"{path} is truncated")
            target.write(buffer[:n_read])
            remaining -= n_read


def _write_index(shards: Shards, path: Path, changes: CheckpointChanges) -> None:
    index = json.loads(shards.files.path(INDEX).read_text(encoding="utf-8"))
    weight_map = index["weight_map"]
    for name in changes.dropped:
        weight_map.pop(name, None)
    for tensor in changes.new:
        weight_map[tensor.name] = shards.places[tensor.same_shard_as].shard
    metadata = index.get("metadata") or {}
    index["metadata"] = {**metadata, "total_size": output_bytes(shards, changes)}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
