"""The result of a bake: its label, the measured distances, and the rounding loss."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from saescope.control.baking.checkpoint_writer import RoundingLoss
from saescope.control.baking.distance import Distance
from saescope.control.baking.settings import Method
from saescope.control.baking.stock import StockReading
from saescope.table import Table

MANIFEST = "saescope_bake.json"


@dataclass(frozen=True)
class Distances:
    """KL to the written checkpoint from three runs of the base model; None if not measured.

    The runs are under the reference intervention, with the edits as steered, and unedited.
    """

    reference: Distance | None = None
    steered: Distance | None = None
    base: Distance | None = None

    effect: Distance | None = None
    "KL from the unedited model to the reference intervention."

    steered_effect: Distance | None = None
    "KL from the unedited model to the edits as steered."

    stock: StockReading | str | None = None
    "What transformers' own model says of both folders, or why it was not asked."


@final
@dataclass(frozen=True, repr=False)
class BakeResult(Table):
    """A checkpoint with edits in its weights: how it was made, its label, and its distances.

    Distances are None if nothing was measured.
    """

    out: Path
    method: Method

    exact: bool
    """Whether the checkpoint equals the method's reference intervention up to rounding.

    Always False for converted edits. The reference may differ from the edits as
    steered: see `kl_steered_baked`.
    """

    hook: str
    "The reference intervention that the checkpoint is compared with, in words."

    why_not: str | None
    "Why the checkpoint is approximate; None if it is exact."

    edits: list[dict[str, Any]]
    converted: bool
    "Whether weights cannot express the edits, so that the closest ones were baked."

    kl_hook_baked: Distance | None
    "Distance from the reference intervention; for converted edits, from the edits as steered."

    kl_steered_baked: Distance | None
    "Distance from the edits as `steered` applies them: after their layer, without sinks."

    kl_base_baked: Distance | None
    "Distance from the model without edits."

    kl_base_hook: Distance | None
    (
        "The hook's own effect: distance from the unedited model to the reference intervention "
        "(converted edits: to the edits as steered)."
    )

    judged_by_transformers: StockReading | None
    "Model and baked folder as transformers' own `from_pretrained` reads them; None: not asked."

    not_judged: str | None
    "Why transformers was not asked; None if it was."

    rounding: list[RoundingLoss]
    notes: list[str]
    files: list[str]

    @property
    def label(self) -> str:
        """`exact` if the checkpoint equals the reference intervention up to rounding.

        Otherwise `approximate`, as converted edits always are.
        """
        return "exact" if self.exact else "approximate"

    @property
    def worst_rounding(self) -> RoundingLoss | None:
        """The tensor that lost the largest fraction of its change to rounding."""
        return max(self.rounding, key=lambda tensor: tensor.fraction_lost, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-compatible dict that `saescope bake --json` prints."""
        return {
            "out": str(self.out),
            "method": self.method,
            "exact": self.exact,
            "label": self.label,
            "hook": self.hook,
            "why_not": self.why_not,
            "converted": self.converted,
            "edits": self.edits,
            "kl_hook_baked": _as_dict(self.kl_hook_baked),
            "kl_steered_baked": _as_dict(self.kl_steered_baked),
            "kl_base_baked": _as_dict(self.kl_base_baked),
            "kl_base_hook": _as_dict(self.kl_base_hook),
            "judged_by_transformers": _as_dict(self.judged_by_transformers),
            "not_judged": self.not_judged,
            "rounding": self._rounding_dict(),
            "tensors_changed": len(self.rounding),
            "notes": self.notes,
            "files": self.files,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per distance; converted edits have none from the reference."""
        distances = {"steered": self.kl_steered_baked, "base": self.kl_base_baked}
        if not self.converted:
            distances = {"hook": self.kl_hook_baked, **distances}
        return [
            {"compared with": name, **measured.to_dict()}
            for name, measured in distances.items()
            if measured is not None
        ]

    def _rounding_dict(self) -> dict[str, Any] | None:
        worst = self.worst_rounding
        if worst is None:
            return None
        mean = float(np.mean([tensor.fraction_lost for tensor in self.rounding]))
        return {"mean": mean, "worst": worst.fraction_lost, "tensor": worst.tensor}


def _as_dict(measured: Distance | StockReading | None) -> dict[str, Any] | None:
    return None if measured is None else measured.to_dict()
