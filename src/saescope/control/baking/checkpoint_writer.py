"""A checkpoint written anew with some of its tensors changed: the same files, tensor by tensor, in little memory.

Arithmetic is in float32, a few rows at a time; what is not changed is copied byte by byte.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.methods import WeightUpdate
from saescope.engine.pages import mapped_pages, release_pages
from saescope.engine.shards import WIDTHS, Place, Shards
from saescope.errors import SourceError
from saescope.sources.checkpoint import INDEX

Progress = Callable[[int, int], None]
_PIECE = 2**22  # values in float32 at a time
_WRITE = 2**18  # bytes a call writes: larger ones took four times as long on ext4
_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class RoundingLoss:
    """What the stored dtype lost of one tensor's intended change: |meant − done| / |meant|, along the direction.

    Of a projection by strength 1 it is the share of the component that survives.
    """

    tensor: str
    lost: float


@dataclass(frozen=True)
class NewTensor:
    """A tensor that the checkpoint did not have: a changed copy of another, or zeros or one row of values.

    It goes into the file of its `beside`.
    """

    name: str
    beside: str
    copied: str | None = None
    change: WeightUpdate | None = None
    shape: tuple[int, ...] = ()
    values: Tensor | None = None


def write_checkpoint(
    shards: Shards,
    out: Path,
    changes: Mapping[str, WeightUpdate],
    new: Sequence[NewTensor] = (),
    drop: Sequence[str] = (),
    progress: Progress | None = None,
) -> list[RoundingLoss]:
    """Write every file of the checkpoint into `out`, with changes, and the index where there was one.

    Tensors of `drop` are left out. Raises SourceError for a change of a tensor that holds no floating point numbers.
    """
    for name in (*changes, *(one.copied for one in new if one.copied)):
        if (dtype := shards.places[name].dtype) not in WIDTHS:
            raise SourceError(
                f"{shards.files.name}: {name} is stored as {dtype}, which is not edited"
            )
    roundings: list[RoundingLoss] = []
    done, total = 0, output_bytes(shards, new, drop)
    for shard in shards.names:
        kept = [(name, place) for name, place in shards.within(shard) if name not in drop]
        added = [one for one in new if shards.places[one.beside].shard == shard]
        with (out / shard).open("wb") as file:
            file.write(_header(shards, shard, kept, added))
            for name, place in kept:
                roundings += _write(file, shards, name, name, changes.get(name))
                done += place.bytes
                if progress:
                    progress(done, total)
            for one in added:
                roundings += _write_new(file, shards, one)
                done += _place_of(shards, one).bytes
    if INDEX in shards.files.names():
        _write_index(shards, out / INDEX, new, drop)
    return roundings


def output_bytes(shards: Shards, new: Sequence[NewTensor] = (), drop: Sequence[str] = ()) -> int:
    """What the tensors will take on disk."""
    return (
        shards.bytes
        + sum(_place_of(shards, n).bytes for n in new)
        - sum(shards.places[n].bytes for n in drop)
    )


def _place_of(shards: Shards, one: NewTensor) -> Place:
    like = shards.places[one.copied or one.beside]
    shape = like.shape if one.copied else one.shape
    place = Place(like.shard, like.dtype, shape, 0, 0)
    return Place(like.shard, like.dtype, shape, 0, place.values * WIDTHS[like.dtype])


def _header(
    shards: Shards, shard: str, kept: Sequence[tuple[str, Place]], added: Sequence[NewTensor]
) -> bytes:
    """The safetensors format: the header's length, JSON padded to 8 bytes; the values follow."""
    header: dict[str, Any] = {"__metadata__": dict(shards.metadata[shard]) or {"format": "pt"}}
    end = 0
    for name, place in (*kept, *((one.name, _place_of(shards, one)) for one in added)):
        start, end = end, end + place.bytes
        header[name] = {
            "dtype": place.dtype,
            "shape": list(place.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(
    file: BinaryIO, shards: Shards, source: str, name: str, change: WeightUpdate | None
) -> list[RoundingLoss]:
    """One tensor of the source, changed or as it is, and what rounding lost of the change."""
    if change is None:
        _copy(shards, shards.places[source], file)
        return []
    tensor = shards.tensor(source)
    loss = RoundingSums()
    for piece in updated(tensor, change, loss):
        _put(file, piece)
    release_pages(mapped_pages([tensor]))
    return [RoundingLoss(name, loss.share)] if loss.meant > 0 else []


def _write_new(file: BinaryIO, shards: Shards, one: NewTensor) -> list[RoundingLoss]:
    if one.copied is not None:
        return _write(file, shards, one.copied, one.name, one.change)
    dtype = next(kind for kind, name in _NAMES.items() if name == _place_of(shards, one).dtype)
    values = torch.zeros(one.shape) if one.values is None else one.values
    _put(file, values.to(dtype))
    return []


def _put(file: BinaryIO, tensor: Tensor) -> None:
    """A tensor's values as they lie in memory."""
    values = memoryview(tensor.contiguous().view(torch.uint8).reshape(-1).numpy().data)
    for start in range(0, len(values), _WRITE):
        file.write(values[start : start + _WRITE])


def _copy(shards: Shards, place: Place, to: BinaryIO) -> None:
    with shards.files.path(place.shard).open("rb", buffering=0) as file:
        file.seek(place.start)
        left, buffer = place.bytes, memoryview(bytearray(_WRITE))
        while left:
            n = file.readinto(buffer[: min(left, len(buffer))])
            if not n:
                raise SourceError(f"{shards.files.path(place.shard)} is truncated")
            to.write(buffer[:n])
            left -= n


def _write_index(shards: Shards, path: Path, new: Sequence[NewTensor], drop: Sequence[str]) -> None:
    index = json.loads(shards.files.path(INDEX).read_text(encoding="utf-8"))
    index["weight_map"] = {
        name: shard for name, shard in index["weight_map"].items() if name not in drop
    }
    index["weight_map"] |= {one.name: shards.places[one.beside].shard for one in new}
    index["metadata"] = {
        **(index.get("metadata") or {}),
        "total_size": output_bytes(shards, new, drop),
    }
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@dataclass
class RoundingSums:
    """Sums of squares of what was meant to change along the direction, and of what was not done of it."""

    meant: float = 0.0
    missed: float = 0.0

    @property
    def share(self) -> float:
        """|meant − done| / |meant|."""
        return float((self.missed / self.meant) ** 0.5) if self.meant else 0.0

    def add(self, before: Tensor, got: Tensor, wanted: Tensor) -> None:
        """Components before, as stored after, and as they should be after."""
        self.meant += float((before - wanted).double().pow(2).sum())
        self.missed += float((got - wanted).double().pow(2).sum())


def updated(tensor: Tensor, change: WeightUpdate, loss: RoundingSums) -> Iterator[Tensor]:
    """The changed tensor in its own dtype, in pieces that follow one another in memory."""
    C, S = change.contract.float(), change.spread.float()
    back = (change.contract.T @ change.spread).float()  # what is spread, contracted again
    k = None if change.k is None else change.k.float()
    if change.axis == -1:
        yield from _along_rows(
            tensor.reshape(-1, tensor.shape[-1]), C, S, change.s.float(), back, k, loss
        )
        return
    for matrix in tensor.reshape(-1, *tensor.shape[-2:]):
        yield from _along_columns(matrix, C, S, change.s.float(), back, loss)


def _along_rows(
    rows: Float[Tensor, "m d_model"],
    C: Float[Tensor, "d_model n"],
    S: Float[Tensor, "d_model n"],
    s: Float[Tensor, "n"],
    back: Float[Tensor, "n n"],
    k: Float[Tensor, "d_model"] | None,
    loss: RoundingSums,
) -> Iterator[Tensor]:
    size = max(1, _PIECE // rows.shape[1])
    for start in range(0, len(rows), size):
        piece = rows[start : start + size].float()
        before = piece @ C
        step = before * s
        piece = torch.addmm(piece, step, S.T, alpha=-1)
        wanted = before - step @ back.T
        if k is not None:
            piece += k
            wanted = wanted + k @ C
        stored = piece.to(rows.dtype)
        loss.add(before, stored.float() @ C, wanted)
        yield stored


def _along_columns(
    matrix: Float[Tensor, "d_model m"],
    C: Float[Tensor, "d_model n"],
    S: Float[Tensor, "d_model n"],
    s: Float[Tensor, "n"],
    back: Float[Tensor, "n n"],
    loss: RoundingSums,
) -> Iterator[Tensor]:
    size = max(1, _PIECE // max(1, matrix.shape[1]))
    starts = range(0, len(matrix), size)
    before = torch.zeros(C.shape[1], matrix.shape[1])
    for start in starts:
        before.addmm_(C[start : start + size].T, matrix[start : start + size].float())
    step = s[:, None] * before
    got = torch.zeros_like(before)
    for start in starts:
        part = slice(start, start + size)
        stored = torch.addmm(matrix[part].float(), S[part], step, alpha=-1).to(matrix.dtype)
        got.addmm_(C[part].T, stored.float())
        yield stored
    loss.add(before, got, before - back @ step)
