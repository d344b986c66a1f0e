"""An SAE's tensors in saescope's layout, with makers' extra steps folded in.

All readers of formats end here. The engine knows one formula: z = W_enc·h + b_enc, then an
activation a, then ĥ = W_dec·a + b_dec; and two ways to normalise h per token.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.errors import SourceError
from saescope.sources.formats.configs import unsupported

# How an SAE normalises each residual, in SAELens' names; `engine/input_norm.py` has the formulas.
InputNorm = Literal["none", "layer_norm", "constant_norm_rescale"]
_CHANGES_INPUT = re.compile(
    r"(?:^|[._])(?P<shift>mean|mu|shift|b_pre|pre_bias|input_bias)$|"
    r"(?:^|[._])(?:scale|input_scale|scaling_factor|norm_factor|std|sigma|var|whiten\w*|W_skip)$"
)
_ROWS_AT_ONCE = 4096  # of the encoder, in float64
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class SaeWeights:
    """One SAE: features are rows of W_enc and columns of W_dec.

    Tensors have the dtype of their file, and are views of it unless something was folded in. `k`
    is set for TopK, `threshold` for JumpReLU and BatchTopK. With an `input_norm`, the rows of W_enc
    have mean 0 if it subtracts the mean.
    """

    W_enc: Float[Tensor, "d_sae d_model"]
    b_enc: Float[Tensor, "d_sae"]
    W_dec: Float[Tensor, "d_model d_sae"]
    b_dec: Float[Tensor, "d_model"]
    activation: str = "topk"
    k: int | None = None
    threshold: Float[Tensor, "d_sae"] | None = None
    input_norm: InputNorm = "none"


@dataclass(frozen=True)
class TensorNames:
    """A format's names of the four tensors, and whether features are rows of its matrices."""

    W_enc: str
    b_enc: str
    W_dec: str
    b_dec: str
    encoder_rows: bool
    decoder_rows: bool


def read_weights(path: Path, state: Mapping[str, Any], names: TensorNames) -> SaeWeights:
    """The four tensors of a file, in saescope's layout.

    Raises SourceError if one is missing, is not a plain floating-point tensor, or if their shapes
    do not fit together.
    """
    w_enc, b_enc = get_tensor(path, state, names.W_enc), get_tensor(path, state, names.b_enc)
    w_dec, b_dec = get_tensor(path, state, names.W_dec), get_tensor(path, state, names.b_dec)
    if w_enc.ndim != 2 or w_dec.ndim != 2:
        raise _shape_error(path, state, names)
    if not names.encoder_rows:
        w_enc = w_enc.T
    if names.decoder_rows:
        w_dec = w_dec.T
    d_sae, d_model = b_enc.numel(), b_dec.numel()
    if d_sae > d_model:  # then the biases tell of matrices stored the other way round
        w_enc = w_enc.T if w_enc.shape == (d_model, d_sae) else w_enc
        w_dec = w_dec.T if w_dec.shape == (d_sae, d_model) else w_dec
    fits = w_enc.shape == (d_sae, d_model) and w_dec.shape == (d_model, d_sae)
    if not fits or b_enc.ndim != 1 or b_dec.ndim != 1 or not w_enc.numel():
        raise _shape_error(path, state, names)
    _refuse_input_changes(path, state, names, d_model)
    return SaeWeights(w_enc, b_enc, w_dec, b_dec)


def _refuse_input_changes(
    path: Path, state: Mapping[str, Any], names: TensorNames, d_model: int
) -> None:
    """Refuse a file with other tensors that would scale, shift or turn the residual.

    Left out, they would give wrong features without a word. Scales of 1 and shifts of 0 are taken.
    """
    used = {names.W_enc, names.b_enc, names.W_dec, names.b_dec}
    for name, tensor in state.items():
        match = _CHANGES_INPUT.search(str(name))
        if match is None or name in used or not isinstance(tensor, Tensor):
            continue
        if tensor.numel() not in (1, d_model, d_model**2):
            continue
        neutral = 0.0 if match["shift"] else 1.0
        if tensor.numel() == d_model**2 or not bool((tensor == neutral).all()):
            raise unsupported(path, f"it holds {name}, which changes the SAE's input")


def _shape_error(path: Path, state: Mapping[str, Any], names: TensorNames) -> SourceError:
    rows, columns = "(d_sae, d_model)", "(d_model, d_sae)"
    expected = {
        names.W_enc: rows if names.encoder_rows else columns,
        names.b_enc: "(d_sae)",
        names.W_dec: rows if names.decoder_rows else columns,
        names.b_dec: "(d_model)",
    }
    shapes = ", ".join(f"{name} {tuple(state[name].shape)}" for name in expected)
    wanted = ", ".join(f"{name} {shape}" for name, shape in expected.items())
    return SourceError(f"{path}: shapes do not fit together: {shapes}; expected {wanted}")


def get_tensor(path: Path, state: Mapping[str, Any], name: str) -> Tensor:
    """A plain floating-point tensor of a file; raises SourceError if it is missing or another."""
    tensor = state.get(name)
    if not isinstance(tensor, Tensor):
        stored = ", ".join(sorted(map(str, state))[:8])
        raise SourceError(f"{path} has no tensor {name} (it has: {stored})")
    if tensor.dtype not in _FLOATS or tensor.layout is not torch.strided or tensor.is_meta:
        kind = f"{tensor.dtype} ({tensor.layout}, {tensor.device})"
        raise SourceError(f"{path}: {name} is {kind}, not a plain floating-point tensor")
    return tensor.detach()


def with_threshold(
    path: Path, state: Mapping[str, Any], weights: SaeWeights, activation: str
) -> SaeWeights:
    """The SAE with the file's `threshold` per feature, in float32; one number stands for all."""
    threshold = get_tensor(path, state, "threshold").float()
    d_sae = len(weights.b_enc)
    if threshold.numel() == 1:
        threshold = threshold.reshape(1).expand(d_sae).contiguous()
    if threshold.shape != (d_sae,):
        shape = tuple(threshold.shape)
        raise SourceError(f"{path}: threshold has shape {shape}, expected ({d_sae},)")
    return replace(weights, activation=activation, threshold=threshold)


def fold_gate(path: Path, weights: SaeWeights, *, r_mag: Tensor, gate_bias: Tensor) -> SaeWeights:
    """A gated SAE, whose b_enc is the magnitude's bias, as a JumpReLU (arXiv 2404.16014).

    With x = W_enc·h, a feature is exp(r_mag)·x + b_mag if x + b_gate > 0, which is the case if
    that value exceeds b_mag - exp(r_mag)·b_gate.
    """
    if not r_mag.shape == gate_bias.shape == weights.b_enc.shape:
        shapes = f"{tuple(r_mag.shape)} and {tuple(gate_bias.shape)}"
        raise SourceError(f"{path}: r_mag and the gate's bias have {shapes} values")
    scale, magnitude_bias = r_mag.float().exp(), weights.b_enc.float()
    return replace(
        weights,
        W_enc=weights.W_enc.float() * scale[:, None],
        b_enc=magnitude_bias,
        activation="jumprelu",
        threshold=magnitude_bias - scale * gate_bias.float(),
    )


def fold_centring(weights: SaeWeights) -> SaeWeights:
    """For makers who encode h - b_dec: subtracts W_enc·b_dec from b_enc, summed in float64."""
    b_dec = weights.b_dec.double()
    blocks = weights.W_enc.split(_ROWS_AT_ONCE)
    shift = torch.cat([rows.double() @ b_dec for rows in blocks])
    return replace(weights, b_enc=(weights.b_enc.double() - shift).float())


def fold_mean(weights: SaeWeights) -> SaeWeights:
    """For makers who subtract each residual's mean before encoding: rows of W_enc get mean 0."""
    w_enc = weights.W_enc.float()
    return replace(weights, W_enc=w_enc - w_enc.mean(dim=1, keepdim=True))


def fold_input_scale(weights: SaeWeights, scale: float) -> SaeWeights:
    """For makers who encode scale·h and divide what they decode by it; activations stay theirs."""
    return replace(
        weights,
        W_enc=weights.W_enc.float() * scale,
        W_dec=weights.W_dec.float() / scale,
        b_dec=weights.b_dec.float() / scale,
    )


def fold_decoder_norm(weights: SaeWeights) -> SaeWeights:
    """For makers who scale activations by decoder norms: decoder columns get norm 1."""
    norms = weights.W_dec.float().norm(dim=0)
    divisors = torch.where(norms > 0, norms, 1.0)
    return replace(
        weights,
        W_enc=weights.W_enc.float() * norms[:, None],
        b_enc=weights.b_enc.float() * norms,
        W_dec=weights.W_dec.float() / divisors,
    )


def fold_scales(weights: SaeWeights, scale_in: float, scale_out: float) -> SaeWeights:
    """For makers who encode scale_in·h and decode scale_out·ĥ: activations in residual units."""
    return replace(
        weights,
        b_enc=weights.b_enc.float() / scale_in,
        W_dec=weights.W_dec.float() * (scale_in / scale_out),
        b_dec=weights.b_dec.float() / scale_out,
    )
