"""Write a checkpoint with some tensors updated: the same files, tensor by tensor, in little memory.

What does not change is copied byte by byte.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
    """What the stored dtype lost of one tensor's change: |intended − stored| / |intended|.

    Both are components along the direction, so for a projection by strength 1 it is the share of
    the component that survives.
    """

    tensor: str
    lost: float


@dataclass(frozen=True)
class NewTensor:
    """A tensor that the checkpoint did not have, written into the file of the tensor `beside`.

    It is an updated copy of another tensor, or has a shape and values (None: zeros).
    """

    name: str
    beside: str
    copy_of: str | None = None
    update: WeightUpdate | None = None
    shape: tuple[int, ...] = ()
    values: Tensor | None = None


@dataclass(frozen=True)
class CheckpointChanges:
    """Updates by tensor name, tensors that are added, and names of those that are left out."""

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
    """Write every file of the checkpoint into `out`, with changes, and its index if it has one.

    `progress` is called with bytes written and their total. Raises SourceError for an update of a
    tensor that does not hold floating point numbers.
    """
    for name in changes.updated_tensors:
        dtype = shards.places[name].dtype
        if dtype not in WIDTHS:
            raise SourceError(
                f"{shards.files.name}: {name} is stored as {dtype}, which cannot be edited"
            )
    losses: list[RoundingLoss] = []
    done, total = 0, output_bytes(shards, changes)
    for shard in shards.names:
        tensors = _tensors_of(shards, shard, changes)
        with (out / shard).open("wb") as file:
            file.write(_header(shards.metadata[shard], tensors))
            for tensor in tensors:
                losses += _write_tensor(file, shards, tensor)
                done += tensor.place.bytes
                if progress is not None:
                    progress(done, total)
    if INDEX in shards.files.names():
        _write_index(shards, out / INDEX, changes)
    return losses


def output_bytes(shards: Shards, changes: CheckpointChanges) -> int:
    """Bytes that the tensors will take on disk."""
    added = sum(_place_of(shards, tensor).bytes for tensor in changes.new)
    dropped = sum(shards.places[name].bytes for name in changes.dropped)
    return shards.bytes + added - dropped


@dataclass(frozen=True)
class _OutputTensor:
    """A tensor to write: from the stored tensor `source`, or (None) from its values."""

    name: str
    place: Place
    source: str | None
    update: WeightUpdate | None
    values: Tensor | None = None


def _tensors_of(shards: Shards, shard: str, changes: CheckpointChanges) -> list[_OutputTensor]:
    """The tensors of one output file, in their order there."""
    tensors = []
    for name, place in shards.within(shard):
        if name not in changes.dropped:
            tensors.append(_OutputTensor(name, place, name, changes.updates.get(name)))
    for new in changes.new:
        if shards.places[new.beside].shard == shard:
            place = _place_of(shards, new)
            tensors.append(_OutputTensor(new.name, place, new.copy_of, new.update, new.values))
    return tensors


def _place_of(shards: Shards, new: NewTensor) -> Place:
    model = shards.places[new.copy_of or new.beside]
    shape = model.shape if new.copy_of else new.shape
    n_values = Place(model.shard, model.dtype, shape, 0, 0).values
    return Place(model.shard, model.dtype, shape, 0, n_values * WIDTHS[model.dtype])


def _header(metadata: Mapping[str, str], tensors: Sequence[_OutputTensor]) -> bytes:
    """The head of a safetensors file: its length, and padded JSON; the values follow."""
    header: dict[str, Any] = {"__metadata__": dict(metadata) or {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.place.bytes
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
    """Write one tensor; returns what rounding lost if it was updated."""
    if tensor.source is None:
        values = torch.zeros(tensor.place.shape) if tensor.values is None else tensor.values
        _write_values(file, values.to(_TORCH_DTYPES[tensor.place.dtype]))
        return []
    if tensor.update is None:
        _copy_bytes(shards, shards.places[tensor.source], file)
        return []
    stored = shards.tensor(tensor.source)
    sums = RoundingSums()
    for piece in apply_update(stored, tensor.update, sums):
        _write_values(file, piece)
    release_pages(mapped_pages([stored]))
    return [RoundingLoss(tensor.name, sums.share)] if sums.intended > 0 else []


def _write_values(file: BinaryIO, tensor: Tensor) -> None:
    """Write a tensor's values as they lie in memory."""
    raw_bytes = tensor.contiguous().view(torch.uint8).reshape(-1)
    values = memoryview(raw_bytes.numpy().data)
    for start in range(0, len(values), _WRITE_BYTES):
        file.write(values[start : start + _WRITE_BYTES])


def _copy_bytes(shards: Shards, place: Place, target: BinaryIO) -> None:
    path = shards.files.path(place.shard)
    buffer = memoryview(bytearray(_WRITE_BYTES))
    with path.open("rb", buffering=0) as file:
        file.seek(place.start)
        remaining = place.bytes
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
        weight_map[tensor.name] = shards.places[tensor.beside].shard
    metadata = index.get("metadata") or {}
    index["metadata"] = {**metadata, "total_size": output_bytes(shards, changes)}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
