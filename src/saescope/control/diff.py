"""What changed between two checkpoints, tensor by tensor, and where along a direction.

Both stay mapped from their files; differences are taken in float32, a few rows at a time. Names that differ by the
prefix before a decoder's own are matched, and an lm_head that one has and the other ties to its embedding.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.residual_map import projection
from saescope.engine.anatomy import Anatomy, Port, read_anatomy
from saescope.engine.gains import norm_gains
from saescope.engine.pages import mapped_pages, release_pages
from saescope.engine.shards import WIDTHS, Shards
from saescope.errors import SourceError
from saescope.sources.files import open_files
from saescope.table import Table

Status = Literal["same", "changed", "reshaped", "only in A", "only in B"]
_PIECE = 2**22  # values in float32 at a time
_ROUNDS = 3  # of power iteration: of a change of rank one the first already has it all
_MOSTLY = 0.9


@dataclass(frozen=True)
class TensorChange:
    """One tensor's change Δ = B − A.

    `relative` is |Δ|/|A| (Frobenius), `largest` the largest value of |Δ|, `rank1` the share of |Δ|² that its strongest
    singular direction has (at least: a few rounds of power iteration). `written` is the share of |Δ|² whose outputs lie
    along the directions asked about, `read` the share whose inputs do, each past the norm between the two; None where
    the tensor has no such side.
    """

    name: str
    status: Status
    shape: tuple[int, ...]
    dtype: str
    relative: float | None = None
    largest: float | None = None
    rank1: float | None = None
    written: float | None = None
    read: float | None = None
    note: str = ""

    @property
    def layer(self) -> int | None:
        """The block it belongs to, where its name has a number."""
        return next((int(part) for part in self.name.split(".") if part.isdecimal()), None)


@final
@dataclass(frozen=True)
class Diff(Table):
    """The answer to `diff`: changed tensors in the order of A's files, then those that only one has."""

    a: str
    b: str
    tensors: list[TensorChange]
    same: int
    notes: list[str]

    @property
    def changed(self) -> list[TensorChange]:
        """Tensors that both have and that differ."""
        return [one for one in self.tensors if one.status == "changed"]

    @property
    def verdict(self) -> str:
        """What the changes look like, in a sentence."""
        return _verdict(self)

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope diff`."""
        count = Counter(one.status for one in self.tensors)
        return {
            "a": self.a,
            "b": self.b,
            "same": self.same,
            "changed": count["changed"],
            "reshaped": count["reshaped"],
            "only_in_a": count["only in A"],
            "only_in_b": count["only in B"],
            "verdict": self.verdict,
            "notes": self.notes,
            "tensors": self.rows(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row a tensor that is not the same."""
        return [{**vars(one), "shape": list(one.shape), "layer": one.layer} for one in self.tensors]


@dataclass(frozen=True)
class _Pair:
    """A tensor of A and what it is compared with: of another name where an lm_head is tied or a prefix differs."""

    a: str | None
    b: str | None
    note: str = ""


def diff(
    a: str | Path,
    b: str | Path,
    directions: Sequence[Float[Tensor, "d_model"]] = (),
    *,
    offline: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Diff:
    """Compare two checkpoints, folders or hub ids; with `directions`, say how much of each change lies along them.

    Raises SourceError for a checkpoint that is missing or damaged, and for directions of another width.
    """
    first, second = (Shards.open(open_files(str(ref), offline=offline)) for ref in (a, b))
    anatomies = [_anatomy(shards) for shards in (first, second)]
    sides = _Sides(first, anatomies[0], directions) if directions else None
    pairs = list(_pairs(first, second, anatomies))
    found, same = [], 0
    for number, pair in enumerate(pairs):
        one = _compare(first, second, pair, sides)
        if one.status == "same":
            same += 1
        else:
            found.append(one)
        if progress:
            progress(number + 1, len(pairs))
    return Diff(first.files.name, second.files.name, found, same, list(_notes(anatomies)))


def _anatomy(shards: Shards) -> Anatomy | None:
    """Which tensors read and write, where the architecture is known."""
    try:
        return read_anatomy(shards.files)
    except SourceError:
        return None


def _notes(anatomies: Sequence[Anatomy | None]) -> Iterator[str]:
    a, b = anatomies
    if a is not None and b is not None and a.tied != b.tied:
        tied, own = ("A", "B") if a.tied else ("B", "A")
        yield f"{tied} ties its lm_head to the embedding, {own} has one of its own: it is compared with that embedding."


def _pairs(first: Shards, second: Shards, anatomies: Sequence[Anatomy | None]) -> Iterator[_Pair]:
    a, b = anatomies
    ordered = [name for shard in first.names for name, _ in first.within(shard)]
    renamed = _renamed(ordered, second, a, b)
    heads = _heads(a, b)
    for name in ordered:
        other = renamed.get(name)
        if name in heads[0] and other is None:
            yield _Pair(name, heads[0][name], "compared with the embedding that B ties it to")
        else:
            yield _Pair(name, other)
    taken = set(renamed.values())
    for name in second.places:
        if name not in taken:
            yield _Pair(
                heads[1].get(name),
                name,
                "compared with the embedding that A ties it to" if name in heads[1] else "",
            )


def _renamed(
    names: Sequence[str], second: Shards, a: Anatomy | None, b: Anatomy | None
) -> dict[str, str]:
    """What B calls each of A's tensors."""
    prefixes = (a.prefix, b.prefix) if a is not None and b is not None else ("", "")
    found = {}
    for name in names:
        swapped = (
            prefixes[1] + name.removeprefix(prefixes[0]) if name.startswith(prefixes[0]) else name
        )
        other = name if name in second.places else swapped
        if other in second.places:
            found[name] = other
    return found


def _heads(a: Anatomy | None, b: Anatomy | None) -> tuple[dict[str, str], dict[str, str]]:
    """An lm_head that only A, or only B, has of its own, and the other's embedding."""
    if a is None or b is None:
        return {}, {}
    only_a = {name: b.embedding.stored[0] for name in a.head.stored if not b.head.stored}
    only_b = {name: a.embedding.stored[0] for name in b.head.stored if not a.head.stored}
    return only_a, only_b


def _compare(first: Shards, second: Shards, pair: _Pair, sides: "_Sides | None") -> TensorChange:
    """One pair; what only one of the two has is said to be so."""
    if pair.a is None or pair.b is None:
        shards, name, status = (
            (first, pair.a, "only in A") if pair.a is not None else (second, pair.b, "only in B")
        )
        place = shards.places[str(name)]
        return TensorChange(str(name), status, place.shape, place.dtype, note=pair.note)  # type: ignore[arg-type]
    head = bool(pair.note)
    name = pair.b if head and pair.b not in first.places else pair.a
    a, b = first.places[pair.a], second.places[pair.b]
    dtype = a.dtype if a.dtype == b.dtype else f"{a.dtype} → {b.dtype}"
    if a.shape != b.shape:
        return TensorChange(name, "reshaped", a.shape, dtype, note=f"B has {list(b.shape)}")
    x, y = first.tensor(pair.a), second.tensor(pair.b)
    try:
        if a.dtype == b.dtype and torch.equal(x, y):
            return TensorChange(name, "same", a.shape, dtype)
        if not {a.dtype, b.dtype} <= WIDTHS.keys() or not a.values:
            return TensorChange(name, "changed", a.shape, dtype, note=pair.note)
        return _measured(name, x, y, dtype, pair.note, sides, head)
    finally:
        release_pages(mapped_pages([x, y]))


class _Sides:
    """Orthonormal bases along which tensors of A write and read, past the norms between them and the residual."""

    def __init__(
        self, shards: Shards, anatomy: Anatomy | None, directions: Sequence[Tensor]
    ) -> None:
        if anatomy is None:
            raise SourceError(
                f"{shards.files.name}: what of it reads and writes is not known, so directions are not"
            )
        if wrong := [len(d) for d in directions if len(d) != anatomy.d_model]:
            raise SourceError(
                f"a direction is {wrong[0]} wide, residuals of {shards.files.name} {anatomy.d_model}"
            )
        self._map = projection(directions, [1.0] * len(directions))
        self._ports: Mapping[str, tuple[Port, bool]] = {
            **{name: (port, True) for port in anatomy.writes for name in port.stored},
            **{name: (port, False) for port in anatomy.reads for name in port.stored},
        }
        self._head = anatomy.head
        self._gains = _gains_if_known(shards, anatomy)

    def of(self, name: str, head: bool) -> tuple[int, Float[Tensor, "d_model n"], bool] | None:
        """The tensor's axis on the residual, the basis there, and whether it writes."""
        port, writes = (self._head, False) if head else self._ports.get(name, (None, False))
        if name in self._head.stored:
            port, writes = self._head, False
        if port is None:
            return None
        basis = self._map.V
        if port.norm is not None and port.norm in self._gains:
            # Before a norm as after it: what γ makes the direction of, or what it makes of the direction, read back.
            basis = torch.where(basis == 0, 0, basis / self._gains[port.norm][:, None])
        return port.axis, torch.linalg.qr(basis)[0], writes


def _gains_if_known(shards: Shards, anatomy: Anatomy) -> dict[str, Tensor]:
    """γ of the norms, or nothing where norms are of another kind: directions are then compared as they are."""
    try:
        return norm_gains(shards, anatomy, anatomy.norms(writes=True, reads=True))
    except SourceError:
        return {}


def _measured(
    name: str, x: Tensor, y: Tensor, dtype: str, note: str, sides: _Sides | None, head: bool
) -> TensorChange:
    """Sizes of the change, and how much of it lies where."""
    shape = tuple(x.shape)
    x, y = (t.reshape(-1, t.shape[-1]) if t.ndim else t.reshape(1, 1) for t in (x, y))
    side = sides.of(name, head) if sides is not None else None
    squares = base = largest = along = 0.0
    columns = _Along(shape, side)
    v = torch.nn.functional.normalize(
        torch.randn(x.shape[1], generator=torch.Generator().manual_seed(0)), dim=0
    )
    following = torch.zeros_like(v)
    for start, delta, before in _pieces(x, y):
        squares += float(delta.double().pow(2).sum())
        base += float(before.double().pow(2).sum())
        largest = max(largest, float(delta.abs().max()))
        along += columns.add(start, delta)
        following += delta.T @ (delta @ v)
    along += columns.total()
    share = along / squares if squares else 0.0
    return TensorChange(
        name=name,
        status="changed" if squares else "same",
        shape=shape,
        dtype=dtype,
        relative=(squares / base) ** 0.5 if base else None,
        largest=largest,
        rank1=_rank1(x, y, following, squares) if len(shape) > 1 and squares else None,
        written=share if side is not None and side[2] else None,
        read=share if side is not None and not side[2] else None,
        note=note,
    )


def _pieces(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first row, change, A's values) of some rows at a time, in float32."""
    size = max(1, _PIECE // x.shape[1])
    for start in range(0, len(x), size):
        before = x[start : start + size].float()
        yield start, y[start : start + size].float() - before, before


def _rank1(x: Tensor, y: Tensor, v: Tensor, squares: float) -> float:
    """Share of |Δ|² along the strongest right singular direction, by power iteration on ΔᵀΔ."""
    for last in range(1, _ROUNDS):
        v = torch.nn.functional.normalize(v, dim=0)
        following, seen = torch.zeros_like(v), 0.0
        for _, delta, _ in _pieces(x, y):
            image = delta @ v
            seen += float(image.double().pow(2).sum())
            if last < _ROUNDS - 1:
                following += delta.T @ image
        v = following
    return min(1.0, seen / squares)


class _Along:
    """Squares of a change's components along a basis of its axis on the residual: of rows at once, of columns at last.

    Of stacked matrices (expert, d_model, width) each has columns of its own.
    """

    def __init__(self, shape: tuple[int, ...], side: tuple[int, Tensor, bool] | None) -> None:
        self._rows = side is not None and (side[0] == -1 or len(shape) < 2)
        self._basis = None if side is None else side[1].float()
        self._width = shape[-2] if len(shape) > 1 else 1
        self._sums: dict[int, Tensor] = {}

    def add(self, start: int, delta: Tensor) -> float:
        """Takes some rows; returns the squares that are known already."""
        if self._basis is None:
            return 0.0
        if self._rows:
            return float((delta @ self._basis).double().pow(2).sum())
        for at, row in _split(start, len(delta), self._width):
            part = delta[at[0] - start : at[1] - start]
            own = self._basis[at[0] % self._width : at[0] % self._width + len(part)]
            total = own.T @ part
            self._sums[row] = self._sums[row] + total if row in self._sums else total
        return 0.0

    def total(self) -> float:
        """The squares of all columns."""
        return float(sum(one.double().pow(2).sum() for one in self._sums.values()))


def _split(start: int, n: int, width: int) -> Iterator[tuple[tuple[int, int], int]]:
    """Rows start..start+n, divided by the matrix of `width` rows they lie in: (from, to), which matrix."""
    at = start
    while at < start + n:
        end = min(start + n, (at // width + 1) * width)
        yield (at, end), at // width
        at = end


def _verdict(of: Diff) -> str:
    if not of.tensors:
        return "The weights are the same."
    changed = of.changed
    if not changed:
        return "No tensor that both have differs."
    writers = [one for one in changed if one.written is not None and one.written > _MOSTLY]
    readers = [one for one in changed if one.read is not None and one.read > _MOSTLY]
    parts = [f"{len(changed)} of {len(changed) + of.same} tensors differ"]
    if any(one.written is not None or one.read is not None for one in changed):
        if writers:
            parts.append(f"{len(writers)} in what they write along the direction{_layers(writers)}")
        if readers:
            parts.append(f"{len(readers)} in what they read of it{_layers(readers)}")
        if not writers and not readers:
            parts.append("none mostly along the direction")
    return ", ".join(parts) + "."


def _layers(of: Sequence[TensorChange]) -> str:
    numbers = sorted({one.layer for one in of if one.layer is not None})
    if not numbers:
        return ""
    return (
        f" (layer {numbers[0]})" if len(numbers) == 1 else f" (layers {numbers[0]}-{numbers[-1]})"
    )
