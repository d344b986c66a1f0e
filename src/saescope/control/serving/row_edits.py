"""Edits of single rows of a batch: each row has its own edits, state and receipt.

The mapping knows neither where requests come from nor who runs the model: a loop says which rows a
pass has, and gets the pass edited.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import get_ident
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


@final
class RowEditing:
    """Lets the passes of one thread edit single rows of a batch. Other threads' are not affected.

    Hooks stay until `close`: torch does not allow them to come and go while another thread runs
    the same model.
    """

    def __init__(self, lm: LM) -> None:
        self._lm = lm
        self._handles: list[RemovableHandle] = []
        self._hooked: set[int] = set()
        self._thread: int | None = None
        self._rows: Mapping[int, RowEdits] = {}
        self._running: dict[int, EditedPass] = {}

    @contextmanager
    def of_rows(self, rows: Mapping[int, RowEdits]) -> Iterator[None]:
        """Within the context, this thread's passes of the model edit these rows, no others."""
        self._hook(set().union(*(edits.active.hooked_layers for edits in rows.values())))
        self._rows, self._thread = rows, get_ident()
        try:
            yield
        finally:
            self._rows, self._thread, self._running = {}, None, {}

    def close(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._hooked.clear()

    def _hook(self, layers: set[int]) -> None:
        new = sorted(layers - self._hooked)
        if not new:
            return
        decoders = [] if self._hooked else [decoder_of(self._lm.whole)]
        blocks = {layer: self._lm.blocks[layer] for layer in new}
        intervene(self._handles, decoders, blocks, self._begin, self._change, self._end)
        self._hooked.update(new)

    def _begin(self, forward: Pass) -> None:
        if get_ident() == self._thread:
            self._running = {row: edits.begin(forward, row) for row, edits in self._rows.items()}

    def _change(
        self, layer: int, resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"] | None:
        if get_ident() != self._thread:
            return None
        edited = {
            row: changed
            for row, edited_pass in self._running.items()
            if (changed := edited_pass.change(layer, resid[row : row + 1])) is not None
        }
        return _with_rows(resid, edited) if edited else None

    def _end(self) -> None:
        if get_ident() == self._thread:
            self._running = {}


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
