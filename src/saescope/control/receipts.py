"""What edits really did. Noted step by step without waiting for the device, and reckoned up when somebody asks."""

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saescope.control.edits import Edit
from saescope.control.formulae import LayerEdits

_KEPT = 512  # notes that are kept before they are reckoned up


class Note(NamedTuple):
    """One layer's part in one pass, for the positions looked at: what is needed to say later what was done there.

    `meant` says which edits were meant for a position, `held` whether their conditions held there (None: without
    exception); `moved` whether the residual that was written differs in any bit from what it was.
    """

    bound: LayerEdits
    numbers: tuple[int, ...]
    amounts: Float[Tensor, "p n"]
    acts: Float[Tensor, "p n"]
    meant: Bool[Tensor, "p n"]
    held: Bool[Tensor, "p n"] | None
    norms: Float[Tensor, "p"]
    moved: Bool[Tensor, "p"]


@final
class Receipt:
    """What edits did: forward passes, positions they looked at and changed, firings, and sizes of the change.

    A position is looked at where an edit is meant for it by its scope; it is changed where bits of the residual as it
    is stored changed, so a change that rounding loses is none.
    """

    def __init__(
        self, edits: Sequence[Edit], gains: Sequence[float] = (), norms: Sequence[float] = ()
    ) -> None:
        self.edits = tuple(edits)
        self.gains, self.norms = list(gains), list(norms)
        self.steps = 0
        self._notes: list[Note] = []
        self._positions = self._changed = 0
        self._ratio_sum = self._largest = 0.0
        n = len(self.edits)
        self._meant, self._fired, self._held, self._strongest = [0] * n, [0] * n, [0] * n, [0.0] * n

    def note(self, note: Note) -> None:
        """Keep what one layer did in one pass."""
        self._notes.append(note)
        if len(self._notes) >= _KEPT:
            self._reckon()

    @property
    def positions(self) -> int:
        """Positions that an edit looked at, counted once a layer."""
        return self._reckon()._positions

    @property
    def changed(self) -> int:
        """Positions of which the residual was changed."""
        return self._reckon()._changed

    @property
    def applied(self) -> bool:
        """Whether any residual was changed at all."""
        return self.changed > 0

    @property
    def fired(self) -> list[int]:
        """On how many positions that it was meant for each edit's feature fired; a direction counts on all of them."""
        return list(self._reckon()._fired)

    @property
    def held(self) -> list[int]:
        """On how many positions that it was meant for each edit's condition held; all of them where it has none."""
        return list(self._reckon()._held)

    @property
    def strongest(self) -> list[float]:
        """The largest activation of each edit's feature (component along a direction) where it was meant for."""
        return list(self._reckon()._strongest)

    @property
    def delta_norm_ratio(self) -> float:
        """Mean of |change| / |residual| over the positions that an edit looked at."""
        return self._ratio_sum / self.positions if self.positions else 0.0

    @property
    def largest_ratio(self) -> float:
        """The largest |change| / |residual|."""
        return self._reckon()._largest

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope steer`; `fired` by name, the largest count where several edits have the same."""
        fired: dict[str, int] = {}
        for edit, n in zip(self.edits, self.fired, strict=True):
            fired[edit.name] = max(n, fired.get(edit.name, 0))
        return {
            "applied": self.applied,
            "steps": self.steps,
            "positions": self.positions,
            "changed": self.changed,
            "fired": fired,
            "delta_norm_ratio": self.delta_norm_ratio,
            "largest_ratio": self.largest_ratio,
            "edits": [self._edit(n) for n in range(len(self.edits))],
        }

    def _edit(self, n: int) -> dict[str, Any]:
        edit = self.edits[n]
        return {
            "edit": edit.name,
            "op": edit.op,
            "strength": edit.amount,
            "gate": edit.gate,
            "scope": edit.scope,
            "skip_sinks": edit.skip_sinks,
            "when": None if edit.condition is None else str(edit.condition),
            "readout_gain": self.gains[n] if self.gains else None,
            "direction_norm": self.norms[n] if self.norms else None,
            "meant": self._meant[n],
            "fired": self.fired[n],
            "held": self.held[n],
            "largest_act": self.strongest[n],
        }

    def _reckon(self) -> "Receipt":
        notes, self._notes = self._notes, []
        for bound in {id(note.bound): note.bound for note in notes}.values():
            self._add([note for note in notes if note.bound is bound])
        return self

    def _add(self, notes: Sequence[Note]) -> None:
        """The notes of one layer's edits, as one."""
        bound, numbers = notes[0].bound, notes[0].numbers
        meant = torch.cat([note.meant for note in notes])
        held = torch.cat(
            [note.meant if note.held is None else note.meant & note.held for note in notes]
        )
        acts = torch.cat([note.acts for note in notes])
        amounts = torch.where(held, torch.cat([note.amounts for note in notes]), 0)
        rows = meant.any(dim=1)
        sizes = (amounts @ bound.d).norm(dim=1)
        ratios = (sizes / torch.cat([note.norms for note in notes]).clamp(min=1e-30))[rows]
        moved = torch.cat([note.moved for note in notes]) & (sizes > 0)
        self._positions += int(rows.sum())
        self._changed += int(moved.sum())
        if len(ratios):
            self._ratio_sum += float(ratios.sum())
            self._largest = max(self._largest, float(ratios.max()))
        fires = (acts > 0) | (bound.reader.ids < 0)
        counts = meant.sum(0).tolist(), (fires & meant).sum(0).tolist(), held.sum(0).tolist()
        strongest = (
            torch.where(meant, acts, 0).amax(0).tolist() if len(acts) else [0.0] * len(numbers)
        )
        for number, n_meant, n_fired, n_held, most in zip(numbers, *counts, strongest, strict=True):
            self._meant[number] += n_meant
            self._fired[number] += n_fired
            self._held[number] += n_held
            self._strongest[number] = max(self._strongest[number], most)
