"""One forward pass under edits: what all active blocks change at each layer, and its record."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saescope.control.active_edits import ActiveEdits, ConditionSite, EditedLayer
from saescope.control.formulae import Coefficients, coefficients
from saescope.control.positions import TargetPositions
from saescope.control.receipts import PassRecord, Receipt


@final
class EditedPass:
    """The pass that a thread is in: active edits, target positions, and what conditions read."""

    def __init__(self, active: Sequence[ActiveEdits], positions: TargetPositions) -> None:
        self._active = active
        self._positions = positions
        self._condition_acts: dict[tuple[int, int], Float[Tensor, "batch pos n"]] = {}

    def change(
        self, layer: int, resid: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "batch pos d"] | None:
        """The residual after all edits of this layer; None if no edit targets any position."""
        h = resid.float()
        for number, active in enumerate(self._active):
            if layer in active.watched:
                reader = active.watched[layer]
                self._condition_acts[number, layer] = reader.acts(h, reader.readout(h))
        norms = torch.linalg.vector_norm(h, dim=-1)
        changes = []
        for number, active in enumerate(self._active):
            if layer in active.layers:
                changes.append(self._change_of(number, layer, h, norms))
        return _apply([change for change in changes if change is not None], resid, h, norms)

    def _change_of(
        self,
        number: int,
        layer: int,
        h: Float[Tensor, "batch pos d"],
        norms: Float[Tensor, "batch pos"],
    ) -> "_Change | None":
        """What the edits of one block do at this layer."""
        active = self._active[number]
        edited = active.layers[layer]
        targets = self._positions.masks(layer, edited.rules, norms)
        if targets is None:
            return None
        selection = _Selection(None if h.shape[1] == 1 else targets.any(dim=-1))
        amounts, acts = coefficients(edited.bound, selection.pick(h))
        targeted = selection.pick(targets).expand_as(acts)
        held = self._conditions_held(number, edited, selection, acts)
        touched = targets[..., 0] if selection.mask is None else selection.mask
        if held is not None or targets.shape[-1] > 1:
            allowed = targeted if held is None else targeted & held
            amounts = torch.where(allowed, amounts, 0)
            touched = selection.spread(allowed.any(dim=-1))
        return _Change(
            active.receipt, edited, selection, Coefficients(amounts, acts), targeted, held, touched
        )

    def _conditions_held(
        self,
        number: int,
        edited: EditedLayer,
        selection: "_Selection",
        acts: Float[Tensor, "p n"],
    ) -> Bool[Tensor, "p n"] | None:
        """Whether each edit's condition holds at the selected positions; None without any."""
        if not edited.conditional:
            return None
        always = torch.ones_like(acts[:, 0], dtype=torch.bool)

        def held(site: ConditionSite | None) -> Bool[Tensor, "p"]:
            if site is None:
                return always
            read = self._condition_acts[number, site.layer][..., site.column]
            return selection.pick(read) > site.above

        return torch.stack([held(site) for site in edited.conditions], dim=-1)


@dataclass(frozen=True, eq=False)
class _Selection:
    """The positions of a pass that some edit targets; without a mask each row has one position."""

    mask: Bool[Tensor, "batch pos"] | None

    def pick(self, values: Tensor) -> Tensor:
        """Values (batch, pos, …) of the selected positions, as (p, …)."""
        return values[:, 0] if self.mask is None else values[self.mask]

    def spread(self, flags: Bool[Tensor, "p"]) -> Bool[Tensor, "batch pos"]:
        """Flags of the selected positions as a mask of all positions."""
        if self.mask is None:
            return flags[:, None]
        return self.mask.masked_scatter(self.mask, flags)

    def add_columns(
        self,
        total: Float[Tensor, "batch pos d"],
        amounts: Float[Tensor, "p n"],
        d: Float[Tensor, "n d"],
    ) -> Float[Tensor, "batch pos d"]:
        """`total` with these amounts of the columns added at the selected positions."""
        if self.mask is None:
            return torch.addmm(total[:, 0], amounts, d)[:, None]
        total = total.clone()
        total[self.mask] += amounts @ d
        return total


@dataclass(frozen=True, eq=False)
class _Change:
    """What the edits of one block do at one layer; `touched` are the positions that they act on."""

    receipt: Receipt
    edited: EditedLayer
    selection: _Selection
    coefficients: Coefficients
    targeted: Bool[Tensor, "p n"]
    condition_held: Bool[Tensor, "p n"] | None
    touched: Bool[Tensor, "batch pos"]

    def record(self, norms: Float[Tensor, "batch pos"], moved: Bool[Tensor, "batch pos"]) -> None:
        """Note in the receipt what was done."""
        self.receipt.record(
            PassRecord(
                bound=self.edited.bound,
                numbers=self.edited.numbers,
                amounts=self.coefficients.amounts,
                acts=self.coefficients.acts,
                targeted=self.targeted,
                condition_held=self.condition_held,
                norms=self.selection.pick(norms),
                moved=self.selection.pick(moved),
            )
        )


def _apply(
    changes: Sequence[_Change],
    resid: Float[Tensor, "batch pos d"],
    h: Float[Tensor, "batch pos d"],
    norms: Float[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos d"] | None:
    """The residual in its own dtype after these changes, all computed from `h`."""
    if not changes:
        return None
    total, touched = h, changes[0].touched
    for change in changes:
        amounts, columns = change.coefficients.amounts, change.edited.bound.d
        total = change.selection.add_columns(total, amounts, columns)
    for change in changes[1:]:
        touched = touched | change.touched
    changed = torch.where(touched[..., None], total.to(resid.dtype), resid)
    moved = (changed != resid).any(dim=-1)
    for change in changes:
        change.record(norms, moved)
    return changed
