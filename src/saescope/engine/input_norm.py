"""Inputs that an SAE normalises per token, and what that means for its outputs.

With h a residual of width d, μ its mean over coordinates and σ its standard deviation (of d - 1
degrees of freedom, as SAELens computes it), an SAE reads and reconstructs

    layer_norm              (h - μ) / (σ + 1e-5)    ĥ = σ·(W_dec·a + b_dec) + μ
    constant_norm_rescale   h · √d / ‖h‖            ĥ = (W_dec·a + b_dec) · ‖h‖ / √d

The reader of the format subtracts the mean from the encoder's rows, so W_enc·(h - μ) is W_enc·h and
only a factor per token is left: z = factor·(W_enc·h) + b_enc. Activations keep the SAE's own unit;
their contribution to the residual is `unit` times a decoder column.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.sources.formats.tensors import InputNorm

_EPSILON = 1e-5  # of SAELens
_TINY = 1e-12  # a residual of zeros has no direction; it is left at 0


class TokenScale(NamedTuple):
    """Per residual: the encoder's factor, one unit of the decoder, and the mean it leaves out."""

    factor: Float[Tensor, "*b 1"]
    unit: Float[Tensor, "*b 1"]
    mean: Float[Tensor, "*b 1"]


def token_scale(kind: InputNorm, resid: Float[Tensor, "*b d_model"]) -> TokenScale | None:
    """Return the scales of these residuals in float32; None for an SAE that reads them as is."""
    if kind == "none":
        return None
    h = resid.float()
    if kind == "layer_norm":
        mean = h.mean(dim=-1, keepdim=True)
        unit = h.std(dim=-1, keepdim=True)
        return TokenScale(1 / (unit + _EPSILON), unit, mean)
    unit = h.norm(dim=-1, keepdim=True) / h.shape[-1] ** 0.5
    return TokenScale(1 / unit.clamp(min=_TINY), unit, torch.zeros_like(unit))


def denormalise(
    kind: InputNorm, decoded: Float[Tensor, "*b d_model"], resid: Float[Tensor, "*b d_model"]
) -> Float[Tensor, "*b d_model"]:
    """Return what an SAE decoded from these residuals, as a residual."""
    scale = token_scale(kind, resid)
    return decoded if scale is None else decoded * scale.unit + scale.mean
