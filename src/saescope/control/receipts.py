"""What edits really did. Passes are recorded without waiting; totals are computed on first read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saescope.control.edits import Edit
from saescope.control.formulae import LayerEdits

_MAX_RECORDS = 512  # then they are added up, so that long generations stay small
_TINY = 1e-30


class PassRecord(NamedTuple):
    """What the edits of one layer did in one forward pass, at the positions that some edit targets.

    `numbers` are the edits' places in the receipt. `targeted` says which edits target a position,
    `condition_held` where their conditions held (None: no edit has one), and `moved` whether the
    residual that was written differs in any bit.
    """

    bound: LayerEdits
    numbers: tuple[int, ...]
    amounts: Float[Tensor, "p n"]
    acts: Float[Tensor, "p n"]
    targeted: Bool[Tensor, "p n"]
    condition_held: Bool[Tensor, "p n"] | None
    norms: Float[Tensor, "p"]
    moved: Bool[Tensor, "p"]


@dataclass
class _EditTotals:
    """Counts of positions that one edit targets, and the largest activation there."""

    targeted: int = 0
    fired: int = 0
    condition_held: int = 0
    largest_act: float = 0.0


@final
class Receipt:
    """What edits did: forward passes, positions targeted and changed, firings, sizes of the change.

    A position counts as changed if any bit of the residual changed as it is stored, so a change
    that rounding loses does not count.
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

    def record(self, record: PassRecord) -> None:
        """Keep what one layer's edits did in one pass."""
        self._records.append(record)
        if len(self._records) >= _MAX_RECORDS:
            self._add_up()

    @property
    def positions(self) -> int:
        """Positions that some edit targets, counted once per layer."""
        self._add_up()
        return self._positions

    @property
    def changed(self) -> int:
        """Positions whose residual changed."""
        self._add_up()
        return self._changed

    @property
    def applied(self) -> bool:
        """Whether any residual changed at all."""
        return self.changed > 0

    @property
    def fired(self) -> list[int]:
        """Targeted positions on which each edit's feature fired; all of them for a direction."""
        return [totals.fired for totals in self._totals()]

    @property
    def condition_held(self) -> list[int]:
        """Targeted positions on which each edit's condition held; all of them without one."""
        return [totals.condition_held for totals in self._totals()]

    @property
    def largest_acts(self) -> list[float]:
        """The largest activation of each edit's feature (component along a direction) there."""
        return [totals.largest_act for totals in self._totals()]

    @property
    def delta_norm_ratio(self) -> float:
        """Mean of |change| / |residual| over the positions that some edit targets."""
        self._add_up()
        return self._ratio_sum / max(self._positions, 1)

    @property
    def largest_ratio(self) -> float:
        """The largest |change| / |residual|."""
        self._add_up()
        return self._largest_ratio

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope steer`.

        `fired` is by name, the largest count if several edits have the same.
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
            "edits": [self._edit_dict(number) for number in range(len(self.edits))],
        }

    def _edit_dict(self, number: int) -> dict[str, Any]:
        edit, totals = self.edits[number], self._totals()[number]
        return {
            "edit": edit.name,
            "op": edit.op,
            "strength": edit.amount,
            "gate": edit.gate,
            "scope": edit.scope,
            "skip_sinks": edit.skip_sinks,
            "when": None if edit.condition is None else str(edit.condition),
            "readout_gain": self.gains[number],
            "direction_norm": self.norms[number],
            "meant": totals.targeted,
            "fired": totals.fired,
            "held": totals.condition_held,
            "largest_act": totals.largest_act,
        }

    def _totals(self) -> list[_EditTotals]:
        self._add_up()
        return self._by_edit

    def _add_up(self) -> None:
        """Add the records to the totals, all those of the same edits at once."""
        records, self._records = self._records, []
        by_edits: dict[int, list[PassRecord]] = {}
        for record in records:
            by_edits.setdefault(id(record.bound), []).append(record)
        for same in by_edits.values():
            self._add(_joined(same))

    def _add(self, record: PassRecord) -> None:
        acted = record.targeted
        if record.condition_held is not None:
            acted = acted & record.condition_held
        self._add_sizes(record, torch.where(acted, record.amounts, 0))
        fires = (record.acts > 0) | (record.bound.reader.ids < 0)
        columns = zip(
            record.numbers,
            record.targeted.sum(0).tolist(),
            (fires & record.targeted).sum(0).tolist(),
            acted.sum(0).tolist(),
            _largest_acts(record),
            strict=True,
        )
        for number, n_targeted, n_fired, n_held, largest_act in columns:
            totals = self._by_edit[number]
            totals.targeted += n_targeted
            totals.fired += n_fired
            totals.condition_held += n_held
            totals.largest_act = max(totals.largest_act, largest_act)

    def _add_sizes(self, record: PassRecord, amounts: Float[Tensor, "p n"]) -> None:
        sizes = (amounts @ record.bound.d).norm(dim=1)
        targeted = record.targeted.any(dim=1)
        ratios = (sizes / record.norms.clamp(min=_TINY))[targeted]
        self._positions += int(targeted.sum())
        self._changed += int((record.moved & (sizes > 0)).sum())
        if len(ratios):
            self._ratio_sum += float(ratios.sum())
            self._largest_ratio = max(self._largest_ratio, float(ratios.max()))


def _largest_acts(record: PassRecord) -> list[float]:
    """The largest activation of each edit's feature where the edit is targeted."""
    if not len(record.acts):
        return [0.0] * len(record.numbers)
    largest: list[float] = torch.where(record.targeted, record.acts, 0).amax(0).tolist()
    return largest


def _joined(records: Sequence[PassRecord]) -> PassRecord:
    """Records of the same edits as one."""
    held = [record.condition_held for record in records if record.condition_held is not None]
    return PassRecord(
        bound=records[0].bound,
        numbers=records[0].numbers,
        amounts=torch.cat([record.amounts for record in records]),
        acts=torch.cat([record.acts for record in records]),
        targeted=torch.cat([record.targeted for record in records]),
        condition_held=torch.cat(held) if held else None,
        norms=torch.cat([record.norms for record in records]),
        moved=torch.cat([record.moved for record in records]),
    )
