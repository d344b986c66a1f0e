"""What `add` edits add: a constant after each layer."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.bake_plan import EditVectors, ReferenceIntervention
from saescope.control.baking.residual_map import shift


def summed_constants(edits: Sequence[EditVectors]) -> dict[int, Float[Tensor, "d_model"]]:
    """Return the sum of what `add` edits add, by layer."""
    total: dict[int, Tensor] = {}
    for vectors in edits:
        constant = vectors.edit.amount * vectors.d
        total[vectors.layer] = total.get(vectors.layer, torch.zeros_like(constant)) + constant
    return total


def constant_intervention(constants: Mapping[int, Tensor]) -> ReferenceIntervention:
    """Return the intervention that adds a constant after each layer."""
    layers = ", ".join(map(str, sorted(constants)))
    maps = {layer: shift(vector) for layer, vector in constants.items()}
    return ReferenceIntervention(f"add after layer {layers}", block_outputs=maps)
