"""What edits did, recorded without synchronizing the device.

Totals are computed on first read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saescope.control.about import about_name
from saescope.control.edits import Edit
from saescope.control.formulae import EditTensors
from saescope.sources.neutral_mean import NeutralMean

_MAX_RECORDS = 512  # aggregated at this count to bound memory
_TINY = 1e-30
_EDITS_SHOWN = 6


class PassRecord(NamedTuple):
    """What the edits of one layer did in one forward pass, at the positions that some edit targets.

    `indices` are the edits' indices in the receipt. `targeted` says which edits target a position,
    `condition_met` whether their conditions were met (None: no edit has one), and `changed` whether
    the stored residual changed.
    """

    tensors: EditTensors
    indices: tuple[int, ...]
    coefficients: Float[Tensor, "p n"]
    acts: Float[Tensor, "p n"]
    targeted: Bool[Tensor, "p n"]
    condition_met: Bool[Tensor, "p n"] | None
    norms: Float[Tensor, "p"]
    changed: Bool[Tensor, "p"]


@dataclass
class _EditTotals:
    """Counts of positions that one edit targets, and the largest activation there."""

    targeted: int = 0
    fired: int = 0
    condition_held: int = 0
    largest_act: float = 0.0


class RelativeChange(NamedTuple):
    """Mean and largest size of a change, in units of `unit`."""

    unit: str
    mean: float
    largest: float


@final
class Receipt:
    """What edits did: forward passes, positions targeted and changed, firings, sizes of the change.

    A position counts as changed if its stored residual changed in any bit. Changes lost to rounding
    do not count.
    """

    def __init__(
        self, edits: Sequence[Edit], gains: Sequence[float], norms: Sequence[float]
    ) -> None:
        self.edits = tuple(edits)
        self.gains, self.norms = list(gains), list(norms)
        self.steps = 0
        self._records: list[PassRecord] = []
        self._by_edit = [_EditTotals() for _ in self.edits]
        self._positions = self._changed = 0
        self._ratio_sum = self._largest_ratio = 0.0
        self._spread_ratio_sum = self._largest_spread_ratio = 0.0
        acting = [edit for edit in self.edits if not edit.is_noop]
        with_spread = {edit.layer for edit in acting if edit.about is not None}
        self._has_spread = all(edit.layer in with_spread for edit in acting)

    def __repr__(self) -> str:
        size = self.size
        lines = [
            f"Receipt: {self.steps} passes, {self.changed} of {self.positions} positions changed",
            f"  |change| / {size.unit}: mean {size.mean:.3g}, largest {size.largest:.3g}",
        ]
        shown = list(zip(self.edits, self.fired, strict=True))[:_EDITS_SHOWN]
        lines += [f"  {edit.name:.60}: fired at {fired} positions" for edit, fired in shown]
        if len(self.edits) > _EDITS_SHOWN:
            lines.append(f"  … {len(self.edits) - _EDITS_SHOWN} more edits")
        return "\n".join(lines)

    def record(self, record: PassRecord) -> None:
        """Add what one layer's edits did in one pass."""
        self._records.append(record)
        if len(self._records) >= _MAX_RECORDS:
            self._aggregate()

    @property
    def positions(self) -> int:
        """Positions that some edit targets, counted once per layer."""
        self._aggregate()
        return self._positions

    @property
    def changed(self) -> int:
        """Positions whose residual changed."""
        self._aggregate()
        return self._changed

    @property
    def applied(self) -> bool:
        """Whether any residual changed at all."""
        return self.changed > 0

    @property
    def fired(self) -> list[int]:
        """Targeted positions where each edit's feature is above 0 under its gate.

        For a direction: all targeted positions.
        """
        return [totals.fired for totals in self._totals()]

    @property
    def condition_held(self) -> list[int]:
        """Targeted positions that met each edit's condition (no condition: all targeted)."""
        return [totals.condition_held for totals in self._totals()]

    @property
    def largest_acts(self) -> list[float]:
        """Largest activation of each edit's feature at targeted positions.

        For a direction: the largest component along it.
        """
        return [totals.largest_act for totals in self._totals()]

    @property
    def delta_norm_ratio(self) -> float:
        """Mean of |change| / |residual| over the positions that some edit targets."""
        self._aggregate()
        return self._ratio_sum / max(self._positions, 1)

    @property
    def largest_ratio(self) -> float:
        """The largest |change| / |residual|."""
        self._aggregate()
        return self._largest_ratio

    @property
    def spread_ratio(self) -> float | None:
        """Mean of |change| / spread over the positions that some edit targets.

        The spread is that of the layer's residuals about their mean on neutral text. None if the
        edits of a layer do not carry it (`Edit.about`).
        """
        self._aggregate()
        return self._spread_ratio_sum / max(self._positions, 1) if self._has_spread else None

    @property
    def largest_spread_ratio(self) -> float | None:
        """The largest |change| / spread; None as for `spread_ratio`."""
        self._aggregate()
        return self._largest_spread_ratio if self._has_spread else None

    @property
    def size(self) -> "RelativeChange":
        """How large the change is: beside the spread if it is known, else beside the residual."""
        mean, largest = self.spread_ratio, self.largest_spread_ratio
        if mean is None or largest is None:
            return RelativeChange("|residual|", self.delta_norm_ratio, self.largest_ratio)
        return RelativeChange("spread", mean, largest)

    @property
    def means(self) -> dict[int, NeutralMean]:
        """The mean residuals that the edits carry, by layer."""
        return {edit.layer: edit.about for edit in self.edits if edit.about is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-compatible dict that `saescope steer --json` prints as `receipt`.

        `fired` is keyed by edit name; edits with the same name report the largest count.
        """
        fired: dict[str, int] = {}
        for edit, count in zip(self.edits, self.fired, strict=True):
            fired[edit.name] = max(count, fired.get(edit.name, 0))
        return {
            "applied": self.applied,
            "steps": self.steps,
            "positions": self.positions,
            "changed": self.changed,
            "fired": fired,
            "delta_norm_ratio": self.delta_norm_ratio,
            "largest_ratio": self.largest_ratio,
            "spread_ratio": self.spread_ratio,
            "largest_spread_ratio": self.largest_spread_ratio,
            "means": {str(layer): mean.to_dict() for layer, mean in self.means.items()},
            "edits": [self._edit_dict(index) for index in range(len(self.edits))],
        }

    def _edit_dict(self, index: int) -> dict[str, Any]:
        edit, totals = self.edits[index], self._totals()[index]
        return {
            "edit": edit.name,
            "op": edit.op,
            "strength": edit.amount,
            "gate": edit.gate,
            "scope": edit.scope,
            "skip_sinks": edit.skip_sinks,
            "about": about_name(edit),
            "when": None if edit.condition is None else str(edit.condition),
            "readout_gain": self.gains[index],
            "direction_norm": self.norms[index],
            "meant": totals.targeted,
            "fired": totals.fired,
            "held": totals.condition_held,
            "largest_act": totals.largest_act,
        }

    def _totals(self) -> list[_EditTotals]:
        self._aggregate()
        return self._by_edit

    def _aggregate(self) -> None:
        """Add the records to the totals, those with the same edits at once."""
        records, self._records = self._records, []
        by_edits: dict[int, list[PassRecord]] = {}
        for record in records:
            by_edits.setdefault(id(record.tensors), []).append(record)
        for same_edits in by_edits.values():
            self._add(_concatenate(same_edits))

    def _add(self, record: PassRecord) -> None:
        applies = record.targeted
        if record.condition_met is not None:
            applies = applies & record.condition_met
        self._add_sizes(record, torch.where(applies, record.coefficients, 0))
        is_direction = record.tensors.reader.ids < 0
        fires = (record.acts > 0) | is_direction
        columns = zip(
            record.indices,
            record.targeted.sum(0).tolist(),
            (fires & record.targeted).sum(0).tolist(),
            applies.sum(0).tolist(),
            _largest_acts(record),
            strict=True,
        )
        for index, n_targeted, n_fired, n_met, largest_act in columns:
            totals = self._by_edit[index]
            totals.targeted += n_targeted
            totals.fired += n_fired
            totals.condition_held += n_met
            totals.largest_act = max(totals.largest_act, largest_act)

    def _add_sizes(self, record: PassRecord, coefficients: Float[Tensor, "p n"]) -> None:
        sizes = (coefficients @ record.tensors.write_directions).norm(dim=1)
        targeted = record.targeted.any(dim=1)
        sizes_targeted = sizes[targeted]
        ratios = sizes_targeted / record.norms.clamp(min=_TINY)[targeted]
        self._positions += int(targeted.sum())
        self._changed += int((record.changed & (sizes > 0)).sum())
        if len(ratios):
            self._ratio_sum += float(ratios.sum())
            self._largest_ratio = max(self._largest_ratio, float(ratios.max()))
        if len(ratios) and record.tensors.spread is not None:
            relative = sizes_targeted / record.tensors.spread
            self._spread_ratio_sum += float(relative.sum())
            self._largest_spread_ratio = max(self._largest_spread_ratio, float(relative.max()))


def _largest_acts(record: PassRecord) -> list[float]:
    """Return the largest activation of each edit's feature at the positions it targets."""
    if not len(record.acts):
        return [0.0] * len(record.indices)
    largest: list[float] = torch.where(record.targeted, record.acts, 0).amax(0).tolist()
    return largest


def _concatenate(records: Sequence[PassRecord]) -> PassRecord:
    """Return records of the same edits as a single record."""
    conditions = [record.condition_met for record in records if record.condition_met is not None]
    return PassRecord(
        tensors=records[0].tensors,
        indices=records[0].indices,
        coefficients=torch.cat([record.coefficients for record in records]),
        acts=torch.cat([record.acts for record in records]),
        targeted=torch.cat([record.targeted for record in records]),
        condition_met=torch.cat(conditions) if conditions else None,
        norms=torch.cat([record.norms for record in records]),
        changed=torch.cat([record.changed for record in records]),
    )
