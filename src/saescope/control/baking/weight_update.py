"""Low-rank updates of stored weights, in float32 some rows at a time, and what rounding loses."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_PIECE_VALUES = 2**22  # float32 values held at a time


@dataclass(frozen=True, eq=False)
class WeightUpdate:
    """W becomes W − spread·diag(s)·(contractᵀ W), + k, along its axis on the residual.

    A map of the residual, h ↦ h − U·diag(s)·Vᵀh, multiplies writers from the left (contract V,
    spread U) and readers from the right (contract U, spread V).
    """

    axis: int
    contract: Float[Tensor, "d_model n"]
    spread: Float[Tensor, "d_model n"]
    s: Float[Tensor, "n"]
    k: Float[Tensor, "d_model"] | None = None


@dataclass
class RoundingSums:
    """Sums of squares along the direction: of the intended change, and of what rounding lost."""

    intended: float = 0.0
    lost: float = 0.0

    @property
    def share(self) -> float:
        """|intended − stored| / |intended|."""
        return float((self.lost / self.intended) ** 0.5) if self.intended else 0.0

    def add(self, before: Tensor, stored: Tensor, target: Tensor) -> None:
        """Add components before the update, as stored after it, and as they should be."""
        self.intended += float((before - target).double().pow(2).sum())
        self.lost += float((stored - target).double().pow(2).sum())


def apply_update(tensor: Tensor, update: WeightUpdate, sums: RoundingSums) -> Iterator[Tensor]:
    """Yield the updated tensor in its dtype, in consecutive pieces."""
    terms = _Terms(
        contract=update.contract.float(),
        spread=update.spread.float(),
        s=update.s.float(),
        spread_contracted=(update.contract.T @ update.spread).float(),
    )
    if update.axis == -1:
        rows = tensor.reshape(-1, tensor.shape[-1])
        k = None if update.k is None else update.k.float()
        yield from _update_rows(rows, terms, k, sums)
        return
    for matrix in tensor.reshape(-1, *tensor.shape[-2:]):
        yield from _update_columns(matrix, terms, sums)


class _Terms(NamedTuple):
    """An update in float32; `spread_contracted` is contractᵀ·spread."""

    contract: Float[Tensor, "d_model n"]
    spread: Float[Tensor, "d_model n"]
    s: Float[Tensor, "n"]
    spread_contracted: Float[Tensor, "n n"]


def _update_rows(
    rows: Float[Tensor, "m d_model"],
    terms: _Terms,
    k: Float[Tensor, "d_model"] | None,
    sums: RoundingSums,
) -> Iterator[Tensor]:
    """Update a tensor whose rows are vectors of the residual."""
    size = max(1, _PIECE_VALUES // rows.shape[1])
    for start in range(0, len(rows), size):
        piece = rows[start : start + size].float()
        before = piece @ terms.contract
        step = before * terms.s
        piece = torch.addmm(piece, step, terms.spread.T, alpha=-1)
        target = before - step @ terms.spread_contracted.T
        if k is not None:
            piece += k
            target = target + k @ terms.contract
        stored = piece.to(rows.dtype)
        sums.add(before, stored.float() @ terms.contract, target)
        yield stored


def _update_columns(
    matrix: Float[Tensor, "d_model m"], terms: _Terms, sums: RoundingSums
) -> Iterator[Tensor]:
    """Update a matrix whose columns are vectors of the residual."""
    size = max(1, _PIECE_VALUES // max(1, matrix.shape[1]))
    pieces = [slice(start, start + size) for start in range(0, len(matrix), size)]
    before = torch.zeros(terms.contract.shape[1], matrix.shape[1])
    for rows in pieces:
        before.addmm_(terms.contract[rows].T, matrix[rows].float())
    step = terms.s[:, None] * before
    after = torch.zeros_like(before)
    for rows in pieces:
        updated = torch.addmm(matrix[rows].float(), terms.spread[rows], step, alpha=-1)
        stored = updated.to(matrix.dtype)
        after.addmm_(terms.contract[rows].T, stored.float())
        yield stored
    sums.add(before, after, before - terms.spread_contracted @ step)
