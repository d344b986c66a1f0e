"""One forward pass under edits: what all active contexts change at each layer, and its record."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saescope.control.active_edits import ActiveEdits, ConditionSite, LayerTargets
from saescope.control.formulae import Coefficients, coefficients
from saescope.control.positions import TargetPositions
from saescope.control.receipts import PassRecord, Receipt
from saescope.errors import EditError


@final
class EditedPass:
    """One forward pass in one thread: active edits, target positions, activations of conditions."""

    def __init__(self, contexts: Sequence[ActiveEdits], positions: TargetPositions) -> None:
        self._contexts = contexts
        self._positions = positions
        self._rows = [positions.rows(context.rows) for context in contexts]
        self._condition_acts: dict[tuple[int, int], Float[Tensor, "batch pos n"]] = {}

    def change(
        self, layer: int, resid: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "batch pos d"] | None:
        """Return this layer's residual after all edits; None if no scope includes this pass."""
        h = resid.float()
        self._check_rows(len(h))
        for context_index, context in enumerate(self._contexts):
            if layer in context.watched:
                reader, read = context.watched[layer], h[self._rows[context_index]]
                self._condition_acts[context_index, layer] = reader.acts(read, reader.readout(read))
        norms = torch.linalg.vector_norm(h, dim=-1)
        changes = []
        for context_index, context in enumerate(self._contexts):
            if layer in context.layers:
                changes.append(self._context_change(context_index, layer, h, norms))
        return _apply([change for change in changes if change is not None], resid, h, norms)

    def _check_rows(self, n_rows: int) -> None:
        for rows in self._rows:
            if rows.stop is not None and rows.stop > n_rows:
                raise EditError(
                    f"these edits are for rows up to {rows.stop} of a batch, and it has {n_rows}: "
                    "pass all rows in one batch"
                )

    def _context_change(
        self,
        context_index: int,
        layer: int,
        h: Float[Tensor, "batch pos d"],
        norms: Float[Tensor, "batch pos"],
    ) -> "_Change | None":
        """Return what the edits of one context do at this layer; None if no scope includes it."""
        context, rows = self._contexts[context_index], self._rows[context_index]
        edits = context.layers[layer]
        masks = self._positions.masks(layer, edits.rules, h, norms)
        if masks is None or not len(h[rows]):
            return None
        h, masks = h[rows], masks[rows]
        selection = _Selection(None if h.shape[1] == 1 else masks.any(dim=-1))
        values, acts = coefficients(edits.tensors, selection.pick(h))
        targeted = selection.pick(masks).expand_as(acts)
        condition_met = self._conditions_met(context_index, edits, selection, acts)
        affected_positions = masks[..., 0] if selection.mask is None else selection.mask
        if condition_met is not None or masks.shape[-1] > 1:
            applies = targeted if condition_met is None else targeted & condition_met
            values = torch.where(applies, values, 0)
            affected_positions = selection.to_full_mask(applies.any(dim=-1))
        return _Change(
            receipt=context.receipt,
            edits=edits,
            selection=selection,
            coefficients=Coefficients(values, acts),
            targeted=targeted,
            condition_met=condition_met,
            affected_positions=affected_positions,
            rows=rows,
        )

    def _conditions_met(
        self,
        context_index: int,
        edits: LayerTargets,
        selection: "_Selection",
        acts: Float[Tensor, "p n"],
    ) -> Bool[Tensor, "p n"] | None:
        """Return whether each edit's condition is met at the selected positions.

        None if no edit has a condition.
        """
        if not edits.conditional:
            return None
        always = torch.ones_like(acts[:, 0], dtype=torch.bool)

        def met(site: ConditionSite | None) -> Bool[Tensor, "p"]:
            if site is None:
                return always
            condition_acts = self._condition_acts[context_index, site.layer][..., site.column]
            return selection.pick(condition_acts) > site.above

        return torch.stack([met(site) for site in edits.conditions], dim=-1)


@dataclass(frozen=True, eq=False)
class _Selection:
    """The positions of a pass that some edit targets.

    mask=None: decoding step with one position per row, all of them selected.
    """

    mask: Bool[Tensor, "batch pos"] | None

    def pick(self, values: Tensor) -> Tensor:
        """Return the values (batch, pos, …) at the selected positions, as (p, …)."""
        return values[:, 0] if self.mask is None else values[self.mask]

    def to_full_mask(self, flags: Bool[Tensor, "p"]) -> Bool[Tensor, "batch pos"]:
        """Return flags of the selected positions as a mask of all positions."""
        if self.mask is None:
            return flags[:, None]
        return self.mask.masked_scatter(self.mask, flags)

    def add_columns(
        self,
        total: Float[Tensor, "batch pos d"],
        coefficients: Float[Tensor, "p n"],
        write_directions: Float[Tensor, "n d"],
    ) -> Float[Tensor, "batch pos d"]:
        """Return `total` plus coefficients · write directions at the selected positions."""
        if self.mask is None:
            return torch.addmm(total[:, 0], coefficients, write_directions)[:, None]
        total = total.clone()
        total[self.mask] += coefficients @ write_directions
        return total


@dataclass(frozen=True, eq=False)
class _Change:
    """What the edits of one context do at one layer.

    At `affected_positions` at least one edit applies: it targets them and its condition is met.
    All but `rows` is about these rows of the batch alone.
    """

    receipt: Receipt
    edits: LayerTargets
    selection: _Selection
    coefficients: Coefficients
    targeted: Bool[Tensor, "p n"]
    condition_met: Bool[Tensor, "p n"] | None
    affected_positions: Bool[Tensor, "rows pos"]
    rows: slice

    def record(self, norms: Float[Tensor, "batch pos"], changed: Bool[Tensor, "batch pos"]) -> None:
        """Add this change to the receipt; `changed` marks residuals that differ as stored."""
        self.receipt.record(
            PassRecord(
                tensors=self.edits.tensors,
                indices=self.edits.indices,
                coefficients=self.coefficients.values,
                acts=self.coefficients.acts,
                targeted=self.targeted,
                condition_met=self.condition_met,
                norms=self.selection.pick(norms[self.rows]),
                changed=self.selection.pick(changed[self.rows]),
            )
        )


def _apply(
    changes: Sequence[_Change],
    resid: Float[Tensor, "batch pos d"],
    h: Float[Tensor, "batch pos d"],
    norms: Float[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos d"] | None:
    """Return the residual in its dtype after these changes, all computed from `h`."""
    if not changes:
        return None
    total, affected_positions = h.clone(), torch.zeros_like(norms, dtype=torch.bool)
    for change in changes:
        write_directions, values = change.edits.tensors.write_directions, change.coefficients.values
        rows = change.rows
        total[rows] = change.selection.add_columns(total[rows], values, write_directions)
        affected_positions[rows] |= change.affected_positions
    edited = torch.where(affected_positions[..., None], total.to(resid.dtype), resid)
    changed = (edited != resid).any(dim=-1)
    for change in changes:
        change.record(norms, changed)
    return edited
