"""Edits of single rows of a batch: each row has its own edits, state and receipt.

The mapping knows neither where requests come from nor who runs the model: a loop says which rows a
pass has, and gets the pass edited.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import final

from jaxtyping import Float
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from saescope.control.active_edits import ActiveEdits
from saescope.control.edited_pass import EditedPass
from saescope.control.positions import TargetPositions
from saescope.control.receipts import Receipt
from saescope.engine.lm import LM
from saescope.engine.residual import Pass, intervene
from saescope.engine.stock import decoder_of


class _State:
    """What the edits of a row remember from one pass to the next; a row's part of a KV cache."""


@final
@dataclass(eq=False)
class RowEdits:
    """The edits of one row, over all passes of its reply."""

    active: ActiveEdits
    _state: _State = field(default_factory=_State)

    @property
    def receipt(self) -> Receipt:
        """What the edits did so far, to this row alone."""
        return self.active.receipt

    def begin(self, forward: Pass, row: int) -> EditedPass:
        """Return the pass as this row's edits see it."""
        mask = None if forward.mask is None else forward.mask[row : row + 1]
        positions = TargetPositions(Pass(mask, forward.n_past, self._state))
        positions.check_cache((self.active.key,))
        self.receipt.steps += 1
        return EditedPass([self.active], positions)


@contextmanager
def edited_rows(lm: LM, rows: Mapping[int, RowEdits]) -> Iterator[None]:
    """Within the context, passes of the whole model edit these rows of the batch, no others.

    It edits the passes of the thread that runs it alone; no other thread may run this model
    meanwhile.
    """
    passes: dict[int, EditedPass] = {}

    def begin(forward: Pass) -> None:
        passes.clear()
        passes.update((row, edits.begin(forward, row)) for row, edits in rows.items())

    layers = sorted(set().union(*(edits.active.hooked_layers for edits in rows.values())))
    handles: list[RemovableHandle] = []
    blocks = {layer: lm.blocks[layer] for layer in layers}
    try:
        intervene(
            handles, [decoder_of(lm.whole)], blocks, begin, partial(_change, passes), passes.clear
        )
        yield
    finally:
        for handle in handles:
            handle.remove()


def _change(
    passes: Mapping[int, EditedPass], layer: int, resid: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"] | None:
    changed = {}
    for row, edited_pass in passes.items():
        edited = edited_pass.change(layer, resid[row : row + 1])
        if edited is not None:
            changed[row] = edited
    if not changed:
        return None
    return _with_rows(resid, changed)


def _with_rows(
    resid: Float[Tensor, "batch pos d_model"], rows: Mapping[int, Float[Tensor, "1 pos d_model"]]
) -> Float[Tensor, "batch pos d_model"]:
    """Return a copy with other rows; those that are not named keep every bit."""
    copy = resid.clone()
    for row, values in rows.items():
        copy[row : row + 1] = values
    return copy


def rows_of(edits: Sequence[RowEdits | None]) -> dict[int, RowEdits]:
    """Return the rows that have edits, by their place in the batch."""
    return {row: one for row, one in enumerate(edits) if one is not None}
