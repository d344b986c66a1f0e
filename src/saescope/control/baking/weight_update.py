"""Low-rank updates of stored weights, computed in float32 in chunks, and their rounding loss.

U, V, s and k are those of `residual_map.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.residual_map import ResidualMap
from saescope.errors import EditError

_CHUNK_VALUES = 2**22  # float32 values in memory at a time


@dataclass(frozen=True, eq=False)
class WeightUpdate:
    """W ← W − U·diag(s)·Vᵀ·W + k, along `axis`: a map applied to W's residual-space vectors.

    Writers take the map of the residual, readers its transpose.
    """

    axis: int
    "The axis of W along the residual: -1 or -2."

    map: ResidualMap


@dataclass
class RoundingSums:
    """Sums of squares along the direction: the intended change, and what rounding lost of it."""

    intended_sq: float = 0.0
    lost_sq: float = 0.0

    @property
    def fraction_lost(self) -> float:
        """|intended − stored| / |intended|, or 0 if no change is intended."""
        if not self.intended_sq:
            return 0.0
        return float((self.lost_sq / self.intended_sq) ** 0.5)

    def add(self, before: Tensor, stored: Tensor, intended_component: Tensor) -> None:
        """Add components along the direction: before, as stored after the update, and intended."""
        self.intended_sq += float((before - intended_component).double().pow(2).sum())
        self.lost_sq += float((stored - intended_component).double().pow(2).sum())


def apply_update(tensor: Tensor, update: WeightUpdate, sums: RoundingSums) -> Iterator[Tensor]:
    """Yield the updated tensor in its dtype, in consecutive chunks; add its rounding to `sums`."""
    U, V, s, k = update.map.U, update.map.V, update.map.s, update.map.k
    factors = _Factors(U.float(), V.float(), s.float(), VU=(V.T @ U).float())
    if update.axis == -1:
        rows = tensor.reshape(-1, tensor.shape[-1])
        yield from _update_rows(rows, factors, k, sums)
        return
    for matrix in tensor.reshape(-1, *tensor.shape[-2:]):
        yield from _update_columns(matrix, factors, sums)


class _Factors(NamedTuple):
    """The linear part of a map in float32, and VU = Vᵀ·U."""

    U: Float[Tensor, "d_model n"]
    V: Float[Tensor, "d_model n"]
    s: Float[Tensor, "n"]
    VU: Float[Tensor, "n n"]


def _update_rows(
    rows: Float[Tensor, "m d_model"],
    factors: _Factors,
    k: Float[Tensor, "d_model"] | None,
    sums: RoundingSums,
) -> Iterator[Tensor]:
    """Update a tensor whose rows are residual-space vectors."""
    size = max(1, _CHUNK_VALUES // rows.shape[1])
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size].float()
        before = chunk @ factors.V
        removed = before * factors.s
        updated = torch.addmm(chunk, removed, factors.U.T, alpha=-1)
        intended_component = before - removed @ factors.VU.T
        if k is not None:
            constant = k.float()
            updated += constant
            intended_component = intended_component + constant @ factors.V
        stored = _rounded(updated, rows.dtype)
        sums.add(before, stored.float() @ factors.V, intended_component)
        yield stored


def _rounded(updated: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values as they are stored; raise EditError if they exceed what the dtype holds."""
    stored = updated.to(dtype)
    if dtype == torch.float16 and (stored.isinf() & updated.isfinite()).any():
        raise EditError(
            f"the edited weights reach {float(updated.abs().max()):.3g}, more than float16 holds: "
            "convert the checkpoint to bfloat16 or float32, or use another method"
        )
    return stored


def _update_columns(
    matrix: Float[Tensor, "d_model m"], factors: _Factors, sums: RoundingSums
) -> Iterator[Tensor]:
    """Update a matrix whose columns are residual-space vectors."""
    size = max(1, _CHUNK_VALUES // max(1, matrix.shape[1]))
    chunks = [slice(start, start + size) for start in range(0, len(matrix), size)]
    before = torch.zeros(factors.V.shape[1], matrix.shape[1])
    for rows in chunks:
        before.addmm_(factors.V[rows].T, matrix[rows].float())
    removed = factors.s[:, None] * before
    after = torch.zeros_like(before)
    for rows in chunks:
        updated = torch.addmm(matrix[rows].float(), factors.U[rows], removed, alpha=-1)
        stored = _rounded(updated, matrix.dtype)
        after.addmm_(factors.V[rows].T, stored.float())
        yield stored
    intended_component = before - factors.VU @ removed
    sums.add(before, after, intended_component)
