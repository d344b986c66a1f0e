"""What `bake` can be asked for. No torch."""

from dataclasses import dataclass
from typing import Literal, get_args

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
        "every-write: project everything that writes to the residual. readers-above: project "
        "everything that reads it above the layer. next-layer: project what reads it in the next "
        "layer only. writers-up-to: project what writes to it up to the layer. bias: for add. "
        "Default: the exact method of the edits' op."
    )

    convert: Conversion | None = None
    "project: bake edits that depend on a feature's firing as projections of its direction."

    measure: bool = True
    "Measure the KL of the written checkpoint from the hook, the edits as steered, and the model."

    def check(self) -> None:
        """Raise EditError if a value is not among the choices."""
        if self.method is not None and self.method not in get_args(Method):
            choices = ", ".join(get_args(Method))
            raise EditError(f"method must be one of {choices}, got {self.method!r}")
        if self.convert is not None and self.convert not in get_args(Conversion):
            raise EditError(f"convert must be 'project' or None, got {self.convert!r}")
