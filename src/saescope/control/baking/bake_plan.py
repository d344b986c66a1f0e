"""What a bake changes in a checkpoint, and the run-time intervention that it stands for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.residual_map import NormProjection, ResidualMap
from saescope.control.baking.settings import Method
from saescope.control.baking.weight_update import WeightUpdate
from saescope.control.edits import Edit


@dataclass(frozen=True, eq=False)
class EditVectors:
    """An edit and its vectors in float64: it reads w·h + b and writes along d."""

    edit: Edit
    w: Float[Tensor, "d_model"]
    b: Float[Tensor, ""]
    d: Float[Tensor, "d_model"]

    @property
    def layer(self) -> int:
        """The layer after which the edit acts."""
        return self.edit.layer

    @property
    def mean(self) -> Float[Tensor, "d_model"] | None:
        """The mean residual that the edit acts about; None for zero."""
        about = self.edit.about
        return None if about is None else torch.tensor(about.values, dtype=torch.float64)


@dataclass(frozen=True)
class ReferenceIntervention:
    """The run-time intervention that a method reproduces or approximates, at every position.

    It maps outputs and inputs of modules, outputs of blocks, and the input of the first block.
    """

    description: str

    module_outputs: Mapping[str, ResidualMap] = field(default_factory=dict)
    "Maps by the module's name in the decoder."

    module_inputs: Mapping[str, ResidualMap] = field(default_factory=dict)
    "Maps of what modules read from the residual without a norm."

    norm_outputs: Mapping[str, NormProjection] = field(default_factory=dict)
    "Maps of norms whose γ holds zeros."

    block_outputs: Mapping[int, ResidualMap] = field(default_factory=dict)
    "Maps by layer."

    first_input: ResidualMap | None = None
    "The map of the first block's input: the embedding."


class NewParameter(NamedTuple):
    """A parameter that the checkpoint lacks; it is zero if `values` is None."""

    shape: tuple[int, ...]
    values: Tensor | None


@dataclass(frozen=True)
class BakePlan:
    """What a method changes in a checkpoint, and its reference intervention."""

    method: Method
    changes: Mapping[str, WeightUpdate]
    "Updates by stored name."

    reference: ReferenceIntervention
    approximation_reason: str | None = None
    "Why the bake is approximate; None if it is exact up to rounding."

    new: Mapping[str, NewParameter] = field(default_factory=dict)
    "Parameters to add, by stored name."

    flags: Mapping[str, bool] = field(default_factory=dict)
    "Keys to set in the config."

    head: WeightUpdate | None = None
    "The update of the lm_head."

    untie_lm_head: bool = False
    "Whether the lm_head gets separate weights instead of sharing the embedding's."

    @property
    def exact(self) -> bool:
        """Whether the checkpoint equals the reference intervention up to rounding."""
        return self.approximation_reason is None
