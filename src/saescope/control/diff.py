"""What changed between two checkpoints, tensor by tensor, and where along directions.

Both stay mapped from their files. Names that differ by the prefix before a decoder's own are
matched, and an lm_head that only one of them stores is compared with the other's embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.diff_measures import ChangeSize, ResidualSides, measure_change
from saescope.control.diff_result import Diff, Status, TensorChange
from saescope.engine.anatomy import Anatomy, read_anatomy
from saescope.engine.pages import mapped_pages, release_pages
from saescope.engine.shards import WIDTHS, Shards
from saescope.errors import SourceError
from saescope.sources.files import open_files
from saescope.sources.mistaken import why_not_compared


def diff(
    a: str | Path,
    b: str | Path,
    directions: Sequence[Float[Tensor, "d_model"]] = (),
    *,
    offline: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Diff:
    """Compare two checkpoints, folders or hub ids, tensor by tensor.

    With `directions`, each change says how much of it lies along them. `progress` is called with
    the tensors compared and their total. Raises SourceError for a checkpoint that is missing or
    damaged, and for directions of another width.

    >>> import saescope as ss
    >>> same = ss.diff("saescope-tiny", "saescope-tiny")
    >>> same.verdict, same.changed
    ('The weights are the same.', [])
    """
    first, second = (_open(ref, offline=offline) for ref in (a, b))
    sides = None
    if directions:
        sides = ResidualSides(first.shards, first.anatomy, directions)
    pairs = [*_pairs_of_a(first, second), *_pairs_of_b_only(first, second)]
    changes, same = [], 0
    for done, pair in enumerate(pairs, 1):
        change = _compare(first.shards, second.shards, pair, sides)
        if change.status == "same":
            same += 1
        else:
            changes.append(change)
        if progress is not None:
            progress(done, len(pairs))
    names = (first.shards.files.name, second.shards.files.name)
    return Diff(*names, changes, same, [*_notes(first, second), *_notes_on_values(changes)])


@dataclass(frozen=True)
class _DiffSide:
    """The stored tensors, and which of them read and write if the architecture is known."""

    shards: Shards
    anatomy: Anatomy | None

    @property
    def prefix(self) -> str:
        """What stands before the decoder's own names."""
        return self.anatomy.prefix if self.anatomy is not None else ""


def _open(ref: str | Path, *, offline: bool) -> _DiffSide:
    files = open_files(str(ref), offline=offline)
    if reason := why_not_compared(files.names()):
        raise SourceError(f"{files.name} {reason}")
    shards = Shards.open(files)
    try:
        return _DiffSide(shards, read_anatomy(shards.files))
    except SourceError:
        return _DiffSide(shards, None)


@dataclass(frozen=True)
class _Pair:
    """One tensor, by the names it has in A and in B (None: it is missing there).

    `note` marks an lm_head that is compared with the other's embedding.
    """

    name: str
    a: str | None
    b: str | None
    note: str = ""


def _pairs_of_a(first: _DiffSide, second: _DiffSide) -> Iterator[_Pair]:
    """A's tensors in the order of its files."""
    name_in_b = _names_in_b(first, second)
    embedding_of = _heads_without_partner(first, second)
    for name in _ordered_names(first.shards):
        other = name_in_b.get(name)
        if other is None and name in embedding_of:
            note = "compared with the embedding that B ties it to"
            yield _Pair(name, name, embedding_of[name], note)
        else:
            yield _Pair(name, name, other)


def _pairs_of_b_only(first: _DiffSide, second: _DiffSide) -> Iterator[_Pair]:
    """B's tensors that A does not have."""
    matched = set(_names_in_b(first, second).values())
    embedding_of = _heads_without_partner(second, first)
    for name in second.shards.places:
        if name in matched:
            continue
        if name in embedding_of:
            note = "compared with the embedding that A ties it to"
            yield _Pair(name, embedding_of[name], name, note)
        else:
            yield _Pair(name, None, name)


def _ordered_names(shards: Shards) -> list[str]:
    return [name for shard in shards.shard_names for name, _ in shards.within(shard)]


def _names_in_b(first: _DiffSide, second: _DiffSide) -> dict[str, str]:
    """What B calls each of A's tensors: the same, or the same after its own prefix."""
    names = {}
    both_known = first.anatomy is not None and second.anatomy is not None
    for name in _ordered_names(first.shards):
        candidates = [name]
        if both_known and name.startswith(first.prefix):
            candidates.append(second.prefix + name.removeprefix(first.prefix))
        for candidate in candidates:
            if candidate in second.shards.places:
                names[name] = candidate
                break
    return names


def _heads_without_partner(own: _DiffSide, other: _DiffSide) -> dict[str, str]:
    """An lm_head that only the first one stores, and the other's embedding."""
    if own.anatomy is None or other.anatomy is None or other.anatomy.head.stored:
        return {}
    embedding = other.anatomy.embedding.stored[0]
    return dict.fromkeys(own.anatomy.head.stored, embedding)


def _compare(
    first: Shards, second: Shards, pair: _Pair, sides: ResidualSides | None
) -> TensorChange:
    if pair.a is None:
        return _unmatched(second, pair.name, "only in B")
    if pair.b is None:
        return _unmatched(first, pair.name, "only in A")
    a, b = first.places[pair.a], second.places[pair.b]
    dtype = a.dtype if a.dtype == b.dtype else f"{a.dtype} → {b.dtype}"
    if a.shape != b.shape:
        note = f"B has {list(b.shape)}"
        return TensorChange(pair.name, "reshaped", a.shape, dtype, note=note)
    x, y = first.tensor(pair.a), second.tensor(pair.b)
    try:
        if a.dtype == b.dtype and (torch.equal(x, y) or _same_bytes(x, y)):
            return TensorChange(pair.name, "same", a.shape, dtype)
        if not {a.dtype, b.dtype} <= WIDTHS.keys() or not a.numel:
            return TensorChange(pair.name, "changed", a.shape, dtype, note=pair.note)
        return _measured(pair, x, y, dtype, sides)
    finally:
        release_pages(mapped_pages([x, y]))


def _same_bytes(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are stored alike: values that are no numbers never equal themselves."""
    first, second = (t.contiguous().reshape(-1).view(torch.uint8) for t in (x, y))
    return torch.equal(first, second)


def _unmatched(shards: Shards, name: str, status: Status) -> TensorChange:
    place = shards.places[name]
    return TensorChange(name, status, place.shape, place.dtype)


def _measured(
    pair: _Pair, x: Tensor, y: Tensor, dtype: str, sides: ResidualSides | None
) -> TensorChange:
    side = None
    if sides is not None:
        side = sides.of(pair.name, is_head=bool(pair.note))
    size = measure_change(x, y, side)
    written = read = None
    if side is not None and side.writes:
        written = size.along
    elif side is not None:
        read = size.along
    return TensorChange(
        name=pair.name,
        status="changed" if size.differs else "same",
        shape=tuple(x.shape),
        dtype=dtype,
        relative=size.relative,
        largest=size.largest,
        rank1=size.rank1,
        written=written,
        read=read,
        note=_note(pair, size),
    )


def _notes_on_values(changes: Sequence[TensorChange]) -> Iterator[str]:
    for change in changes:
        if "not finite" in change.note:
            yield f"{change.name}: {change.note}"


def _note(pair: _Pair, size: ChangeSize) -> str:
    """Return the pair's note, and how many values the figures leave out."""
    parts = [pair.note] if pair.note else []
    if size.not_finite:
        parts.append(f"{size.not_finite} values are not finite in A or in B: left out")
    return "; ".join(parts)


def _notes(first: _DiffSide, second: _DiffSide) -> Iterator[str]:
    a, b = first.anatomy, second.anatomy
    if a is None or b is None or a.tied == b.tied:
        return
    tied, untied = ("A", "B") if a.tied else ("B", "A")
    yield (
        f"{tied} ties its lm_head to the embedding, {untied} has one of its own: "
        "it is compared with that embedding."
    )
