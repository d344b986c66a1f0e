"""How large one tensor's change is, and how much of it lies along directions of the residual.

Differences are computed in float32, some rows at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.residual_map import at_zeros, projection
from saescope.engine.anatomy import Anatomy, Port
from saescope.engine.gains import norm_gains
from saescope.engine.shards import Shards
from saescope.errors import SourceError

_PIECE_VALUES = 2**22  # float32 values held at a time
_DEPENDENT = 1e-9  # relative singular value below which directions depend on one another
_POWER_ITERATIONS = 3  # of a change of rank one, the first finds it all


@dataclass(frozen=True)
class ChangeSize:
    """Sizes of a change Δ from A; `along` is the share of |Δ|² along a basis.

    Values that are no finite numbers in A or in B are left out of all of them, and counted.
    """

    differs: bool
    relative: float | None
    largest: float
    rank1: float | None
    along: float
    not_finite: int = 0


@dataclass(frozen=True, eq=False)
class ResidualSide:
    """Where a tensor meets the residual: its axis, the directions as a basis there, its role."""

    axis: int
    basis: Float[Tensor, "d_model n"]
    writes: bool


def measure_change(x: Tensor, y: Tensor, side: ResidualSide | None) -> ChangeSize:
    """Measure y − x, and how much of it lies along the basis of `side`."""
    shape = tuple(x.shape)
    x, y = _as_matrix(x), _as_matrix(y)
    components = _components(shape, side)
    squares = base_squares = largest = 0.0
    not_finite = 0
    v = _random_unit_vector(x.shape[1])
    next_v = torch.zeros_like(v)
    for piece in _pieces(x, y):
        delta = piece.delta
        not_finite += piece.not_finite
        squares += float(delta.double().pow(2).sum())
        base_squares += float(piece.before.double().pow(2).sum())
        largest = max(largest, float(delta.abs().max()))
        next_v += delta.T @ (delta @ v)
        if components is not None:
            components.add(piece.start, delta)
    if not squares:
        # What differs, if anything, has no size.
        return ChangeSize(not_finite > 0, None, 0.0, None, 0.0, not_finite)
    return ChangeSize(
        differs=True,
        relative=(squares / base_squares) ** 0.5 if base_squares else None,
        largest=largest,
        rank1=_rank1_share(x, y, next_v, squares) if len(shape) > 1 else None,
        along=components.squares() / squares if components is not None else 0.0,
        not_finite=not_finite,
    )


class ResidualSides:
    """Bases of the directions where A's tensors read and write, past the norms between."""

    def __init__(
        self, shards: Shards, anatomy: Anatomy | None, directions: Sequence[Tensor]
    ) -> None:
        """Raises SourceError for an unknown architecture and for directions of another width."""
        name = shards.files.name
        if anatomy is None:
            raise SourceError(
                f"{name}: which tensors read and write the residual is not known for this "
                "architecture: compare without directions"
            )
        for d in directions:
            if len(d) != anatomy.d_model:
                raise SourceError(
                    f"a direction is {len(d)} wide, residuals of {name} {anatomy.d_model}"
                )
        self._basis = projection(directions, [1.0] * len(directions)).V
        self._writers = {name: port for port in anatomy.writes for name in port.stored}
        self._readers = {name: port for port in anatomy.reads for name in port.stored}
        self._head = anatomy.head
        self._gains = _gains_if_known(shards, anatomy)

    def of(self, name: str, *, is_head: bool) -> ResidualSide | None:
        """Where a tensor meets the residual; None if it does not."""
        if is_head or name in self._head.stored:
            return self._side(self._head, writes=False)
        if name in self._readers:
            return self._side(self._readers[name], writes=False)
        if name in self._writers:
            return self._side(self._writers[name], writes=True)
        return None

    def _side(self, port: Port, *, writes: bool) -> ResidualSide:
        basis = self._basis
        if port.norm is not None and port.norm in self._gains:
            # The same before a norm and after it: the direction that γ makes this one of, or that
            # it makes of this one, read back.
            gain = self._gains[port.norm]
            # Coordinates with γ = 0 are not seen past the norm.
            basis = torch.where(at_zeros(gain)[:, None], 0, basis / gain[:, None])
        return ResidualSide(port.axis, _orthonormal(basis), writes)


def _orthonormal(vectors: Float[Tensor, "d_model n"]) -> Float[Tensor, "d_model m"]:
    """Return a basis of what the columns span; none is left of columns that are zero."""
    U, S, _ = torch.linalg.svd(vectors, full_matrices=False)
    smallest = _DEPENDENT * S.max().clamp(min=1e-30)
    basis: Tensor = U[:, smallest < S]
    return basis


def _gains_if_known(shards: Shards, anatomy: Anatomy) -> dict[str, Tensor]:
    """γ of the norms; empty for norms of another kind, past which directions stay as they are."""
    try:
        return norm_gains(shards, anatomy, anatomy.norms(writes=True, reads=True))
    except SourceError:
        return {}


def _as_matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim else tensor.reshape(1, 1)


def _random_unit_vector(n: int) -> Float[Tensor, "n"]:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(n, generator=generator), dim=0)


class _Piece(NamedTuple):
    """Some rows: the number of the first one, the change, and A's values.

    Both are 0 at the `not_finite` places where A or B has no finite number.
    """

    start: int
    delta: Float[Tensor, "m n"]
    before: Float[Tensor, "m n"]
    not_finite: int


def _pieces(x: Tensor, y: Tensor) -> Iterator[_Piece]:
    n_rows = max(1, _PIECE_VALUES // x.shape[1])
    for start in range(0, len(x), n_rows):
        rows = slice(start, start + n_rows)
        before, after = x[rows].float(), y[rows].float()
        infinite = ~(before.isfinite() & after.isfinite())
        n = int(infinite.sum())
        if n:
            before, after = (t.masked_fill(infinite, 0.0) for t in (before, after))
        yield _Piece(start, after - before, before, n)


def _rank1_share(x: Tensor, y: Tensor, v: Tensor, squares: float) -> float:
    """Share of |Δ|² along the strongest right singular direction, by power iteration on ΔᵀΔ.

    `v` has been through the first iteration.
    """
    strongest = 0.0
    for _ in range(1, _POWER_ITERATIONS):
        v = torch.nn.functional.normalize(v, dim=0)
        next_v, strongest = torch.zeros_like(v), 0.0
        for piece in _pieces(x, y):
            image = piece.delta @ v
            strongest += float(image.double().pow(2).sum())
            next_v += piece.delta.T @ image
        v = next_v
    return min(1.0, strongest / squares)


def _components(
    shape: tuple[int, ...], side: ResidualSide | None
) -> "_RowComponents | _ColumnComponents | None":
    if side is None:
        return None
    if side.axis == -1 or len(shape) < 2:
        return _RowComponents(side.basis.float())
    return _ColumnComponents(side.basis.float(), height=shape[-2], width=shape[-1])


class _RowComponents:
    """Squares of a change's components along a basis, if each row is a vector of the residual."""

    def __init__(self, basis: Float[Tensor, "d_model n"]) -> None:
        self._basis = basis
        self._squares = 0.0

    def add(self, _start: int, delta: Tensor) -> None:
        """Add some rows."""
        self._squares += float((delta @ self._basis).double().pow(2).sum())

    def squares(self) -> float:
        """The sum over all rows."""
        return self._squares


class _ColumnComponents:
    """The same if each column is a vector of the residual.

    Stacked matrices (expert, d_model, width) lie below one another and have columns of their own.
    """

    def __init__(self, basis: Float[Tensor, "d_model n"], height: int, width: int) -> None:
        self._basis = basis
        self._height = height
        self._width = width
        self._sums: dict[int, Tensor] = {}

    def add(self, start: int, delta: Tensor) -> None:
        """Add some rows, of one matrix after the other."""
        row = 0
        while row < len(delta):
            matrix, offset = divmod(start + row, self._height)
            n = min(self._height - offset, len(delta) - row)
            if matrix not in self._sums:
                self._sums[matrix] = torch.zeros(self._basis.shape[1], self._width)
            self._sums[matrix] += self._basis[offset : offset + n].T @ delta[row : row + n]
            row += n

    def squares(self) -> float:
        """The sum over the columns of all matrices."""
        return float(sum(total.double().pow(2).sum() for total in self._sums.values()))
