"""What a bake made: its label, the distances measured, what rounding lost."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from saescope.control.baking.checkpoint_writer import RoundingLoss
from saescope.control.baking.distance import Distance
from saescope.control.baking.settings import Method
from saescope.table import Table

MANIFEST = "saescope_bake.json"


@final
@dataclass(frozen=True)
class BakeResult(Table):
    """A checkpoint with edits in its weights: how, whether that is exactly the hook, and how far it is measured to be.

    `kl_hook_baked` compares it with the method's own hook (of edits that were converted, with the edits themselves);
    `kl_steered_baked` with the edits as `steered` applies them, after their layer and with sinks left alone;
    `kl_base_baked` with the model without edits. All None where nothing was measured.
    """

    out: Path
    method: Method
    exact: bool
    hook: str
    why_not: str | None
    edits: list[dict[str, Any]]
    converted: bool
    kl_hook_baked: Distance | None
    kl_steered_baked: Distance | None
    kl_base_baked: Distance | None
    rounding: list[RoundingLoss]
    notes: list[str]
    files: list[str]

    @property
    def label(self) -> str:
        """`exact` or `approximate`."""
        return "exact" if self.exact else "approximate"

    @property
    def worst_rounding(self) -> RoundingLoss | None:
        """The tensor whose change lost most to its stored dtype."""
        return max(self.rounding, key=lambda one: one.lost, default=None)

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope bake`."""
        far = {
            name: getattr(self, name)
            for name in ("kl_hook_baked", "kl_steered_baked", "kl_base_baked")
        }
        worst = self.worst_rounding
        lost = [one.lost for one in self.rounding]
        return {
            "out": str(self.out),
            "method": self.method,
            "exact": self.exact,
            "label": self.label,
            "hook": self.hook,
            "why_not": self.why_not,
            "converted": self.converted,
            "edits": self.edits,
            **{name: one and one.to_dict() for name, one in far.items()},
            "rounding": worst
            and {"mean": float(np.mean(lost)), "worst": worst.lost, "tensor": worst.tensor},
            "tensors_changed": len(self.rounding),
            "notes": self.notes,
            "files": self.files,
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row a distance."""
        found = (
            ("hook", self.kl_hook_baked),
            ("steered", self.kl_steered_baked),
            ("base", self.kl_base_baked),
        )
        own = [
            (name, one)
            for name, one in found
            if one is not None and not (self.converted and name == "hook")
        ]
        return [{"compared with": name, **one.to_dict()} for name, one in own]
