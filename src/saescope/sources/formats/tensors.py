"""An SAE's tensors as this project holds them, and what makers do around them folded in.

All readers of formats end here. The engine knows one formula, z = W_enc·h + b_enc and ĥ = W_dec·a + b_dec.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.errors import SourceError

_ROWS = 4096  # of the encoder, in float64 at a time
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class SaeWeights:
    """One SAE: rows of W_enc and columns of W_dec are features; the activation is the catalog's word for it.

    Tensors have the dtype of their file, and are views of it where nothing was folded into them.
    """

    W_enc: Float[Tensor, "d_sae d_model"]
    b_enc: Float[Tensor, "d_sae"]
    W_dec: Float[Tensor, "d_model d_sae"]
    b_dec: Float[Tensor, "d_model"]
    activation: str = "topk"
    k: int | None = None
    threshold: Float[Tensor, "d_sae"] | None = None


def weights_of(
    path: Path,
    state: Mapping[str, Any],
    names: tuple[str, str, str, str],
    *,
    encoder_in_rows: bool,
    decoder_in_rows: bool,
) -> SaeWeights:
    """Four tensors of a file by their names there; `…_in_rows` says that a feature is a row of its matrix.

    Raises SourceError where one is missing, is no plain floating-point tensor, or where shapes do not fit together.
    """
    found = [tensor_of(path, state, name) for name in names]
    w_enc, b_enc, w_dec, b_dec = found
    if w_enc.ndim == w_dec.ndim == 2:
        w_enc = w_enc if encoder_in_rows else w_enc.T
        w_dec = w_dec.T if decoder_in_rows else w_dec
        d_sae, d_model = w_enc.shape
        if (
            w_enc.numel()
            and b_enc.shape == (d_sae,)
            and w_dec.shape == (d_model, d_sae)
            and b_dec.shape == (d_model,)
        ):
            return SaeWeights(w_enc, b_enc, w_dec, b_dec)
    got = ", ".join(
        f"{name} {tuple(tensor.shape)}" for name, tensor in zip(names, found, strict=True)
    )
    sizes = [("d_model", "d_sae"), ("d_sae", "d_model")]
    shapes = [sizes[encoder_in_rows], ("d_sae",), sizes[decoder_in_rows], ("d_model",)]
    wanted = ", ".join(
        f"{name} ({', '.join(shape)})" for name, shape in zip(names, shapes, strict=True)
    )
    raise SourceError(f"{path}: shapes do not fit together: {got}; expected {wanted}")


def tensor_of(path: Path, state: Mapping[str, Any], name: str) -> Tensor:
    """One plain floating-point tensor of a file; raises SourceError where it is missing or something else."""
    tensor = state.get(name)
    if not isinstance(tensor, Tensor):
        keys = ", ".join(sorted(map(str, state))[:8])
        raise SourceError(f"{path} has no tensor {name} (it has: {keys})")
    if not (tensor.dtype in _FLOATS and tensor.layout is torch.strided and not tensor.is_meta):
        kind = f"{tensor.dtype} ({tensor.layout}, {tensor.device})"
        raise SourceError(f"{path}: {name} is {kind}, not a plain floating-point tensor")
    return tensor.detach()


def threshold_of(
    path: Path, state: Mapping[str, Any], name: str, weights: SaeWeights
) -> Float[Tensor, "d_sae"]:
    """A threshold for every feature, in float32; one number stands for all. Raises SourceError as `tensor_of` does."""
    threshold = tensor_of(path, state, name).float()
    if threshold.numel() == 1:
        threshold = threshold.reshape(1).expand(len(weights.b_enc)).contiguous()
    if threshold.shape != weights.b_enc.shape:
        raise SourceError(
            f"{path}: {name} has shape {tuple(threshold.shape)}, expected ({len(weights.b_enc)},)"
        )
    return threshold


def gated(
    path: Path, state: Mapping[str, Any], names: tuple[str, str], weights: SaeWeights
) -> SaeWeights:
    """A gated SAE, whose b_enc is the magnitude's bias, by the names of its r_mag and its gate's bias, as a JumpReLU.

    With x = W_enc·h a feature is exp(r_mag)·x + b_mag where x + b_gate > 0: where the first is over b_mag -
    exp(r_mag)·b_gate (arXiv 2404.16014).
    """
    r_mag, gate = (tensor_of(path, state, name).float() for name in names)
    if not r_mag.shape == gate.shape == weights.b_enc.shape:
        raise SourceError(
            f"{path}: {' and '.join(names)} have {tuple(r_mag.shape)} and {tuple(gate.shape)} values"
        )
    scale, magnitude = r_mag.exp(), weights.b_enc.float()
    scaled = weights.W_enc.float() * scale[:, None]
    return replace(
        weights,
        W_enc=scaled,
        b_enc=magnitude,
        activation="jumprelu",
        threshold=magnitude - scale * gate,
    )


def centred_by_decoder_bias(weights: SaeWeights) -> SaeWeights:
    """For makers who encode h − b_dec: b_enc takes W_enc·b_dec off, summed in float64."""
    bias = weights.b_dec.double()
    taken = torch.cat([rows.double() @ bias for rows in weights.W_enc.split(_ROWS)])
    return replace(weights, b_enc=(weights.b_enc.double() - taken).float())


def by_decoder_norm(weights: SaeWeights) -> SaeWeights:
    """For makers who measure an activation by the length it is decoded to: decoder columns get length 1."""
    norms = weights.W_dec.float().norm(dim=0)
    lengths = torch.where(norms > 0, norms, 1.0)
    return replace(
        weights,
        W_enc=weights.W_enc.float() * norms[:, None],
        b_enc=weights.b_enc.float() * norms,
        W_dec=weights.W_dec.float() / lengths,
    )


def in_residual_units(weights: SaeWeights, scale_in: float, scale_out: float) -> SaeWeights:
    """For makers who encode scale_in·h and decode to scale_out·ĥ: activations are measured in the residual's units."""
    return replace(
        weights,
        b_enc=weights.b_enc.float() / scale_in,
        W_dec=weights.W_dec.float() * (scale_in / scale_out),
        b_dec=weights.b_dec.float() / scale_out,
    )
