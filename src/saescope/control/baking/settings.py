"""Settings of `bake`. No torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from saescope.control.measured_text import Measure, extent
from saescope.errors import EditError

Method = Literal["every-write", "readers-above", "next-layer", "writers-up-to", "bias"]
Conversion = Literal["project"]


@dataclass(frozen=True)
class BakeSettings:
    """How `bake` puts edits into weights, and whether it measures the result.

    >>> import saescope as ss
    >>> settings = ss.BakeSettings(method="readers-above", measure=False)
    >>> settings.check()
    >>> settings.method, settings.convert
    ('readers-above', None)
    """

    method: Method | None = None
    (
        "every-write: project all weights that write to the residual. readers-above: project all "
        "weights that read it above the layer. next-layer: project weights that read it in the "
        "next layer only. writers-up-to: project weights that write to it up to the layer. bias: "
        "add a constant to the MLP output bias (op add only). "
        "Default: every-write, or bias for op add."
    )

    convert: Conversion | None = None
    (
        "project: if weights cannot express an edit, bake the closest one. A scale or clamp that "
        "removes becomes a projection; other ops lose their scope and condition."
    )

    measure: Measure | bool = "sample"
    (
        "How much neutral text to measure on, once the checkpoint is written: all of it (full, or "
        "True), a sample of 32 texts, or none (or False). Measured is the KL from the reference "
        "intervention, the edits as steered, and the unedited model to the checkpoint, and "
        "transformers' own model judges the folder. With none, methods that are approximate are "
        "still checked on a few short texts."
    )

    force: bool = False
    (
        "Write the checkpoint even if it is further from the method's reference intervention than "
        "that intervention is from the unedited model (for approximate methods: or than the edit "
        "as steered is), or if transformers reads it otherwise."
    )

    def check(self) -> None:
        """Raise EditError for a value that is not among the choices."""
        extent(self.measure)
        if self.method is not None and self.method not in get_args(Method):
            choices = ", ".join(get_args(Method))
            raise EditError(f"method must be one of {choices}, got {self.method!r}")
        if self.convert is not None and self.convert not in get_args(Conversion):
            raise EditError(f"convert must be 'project' or None, got {self.convert!r}")
