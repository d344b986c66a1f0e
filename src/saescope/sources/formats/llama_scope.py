"""Llama Scope (OpenMOSS): `hyperparams.json` and `checkpoints/final.safetensors`; JumpReLU made from TopK.

encoder.weight (d_sae, d_model)   encoder.bias (d_sae,)   decoder.weight (d_model, d_sae)   decoder.bias (d_model,)
Trained on s·h with s = sqrt(d_model) / mean norm. As in the makers' own loader, scales and decoder norms are folded: an
activation is the length of its contribution to the residual, and the threshold is meant in that unit.
"""

import math
from dataclasses import replace
from pathlib import Path

import torch

from saescope.errors import SourceError
from saescope.sources.formats.configs import Config, flag, number, part, refuse, whole
from saescope.sources.formats.containers import read_safetensors
from saescope.sources.formats.tensors import (
    SaeWeights,
    by_decoder_norm,
    centred_by_decoder_bias,
    in_residual_units,
    weights_of,
)

_NAMES = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")


def read(path: Path, config: Config) -> SaeWeights:
    """The SAE with scales, centring and decoder norms folded in.

    Raises SourceError for damaged files, transcoders, gated linear encoders, and inputs normalised token by token.
    """
    if flag(config, "use_glu_encoder"):
        raise refuse(path, "its encoder has gated linear units (use_glu_encoder)")
    if config.get("hook_point_out", config.get("hook_point_in")) != config.get("hook_point_in"):
        raise refuse(path, "it is a transcoder: it decodes to another place than it reads")
    state = dict(read_safetensors(path))
    if not flag(config, "use_decoder_bias", default=True) and "decoder.weight" in state:
        state["decoder.bias"] = torch.zeros(len(state["decoder.weight"]))
    weights = weights_of(path, state, _NAMES, encoder_in_rows=True, decoder_in_rows=False)
    weights = in_residual_units(weights, *_scales(path, config, weights))
    if flag(config, "apply_decoder_bias_to_pre_encoder"):
        weights = centred_by_decoder_bias(weights)
    if flag(config, "sparsity_include_decoder_norm", default=True):
        weights = by_decoder_norm(weights)
    return _activated(path, config, weights)


def _scales(path: Path, config: Config, weights: SaeWeights) -> tuple[float, float]:
    norms = part(config, "dataset_average_activation_norm")
    kind = config.get("norm_activation", "dataset-wise" if norms else "none")
    if kind in ("none", "inference"):
        return 1.0, 1.0
    if kind != "dataset-wise":
        raise refuse(path, f"its input is normalised by token (norm_activation {kind!r:.40})")
    root = math.sqrt(weights.W_enc.shape[1])
    return root / number(norms, "in"), root / number(norms, "out" if "out" in norms else "in")


def _activated(path: Path, config: Config, weights: SaeWeights) -> SaeWeights:
    threshold = config.get("jump_relu_threshold", 0)
    kind = str(config.get("act_fn", "jumprelu")).lower()
    if kind in ("topk", "jumprelu") and threshold:
        over = torch.full((len(weights.b_enc),), number(config, "jump_relu_threshold"))
        return replace(weights, activation="jumprelu", threshold=over)
    match kind:
        case "topk":
            return replace(weights, k=whole(config, "top_k"))
        case "relu" | "jumprelu":
            return replace(weights, activation="relu")
    raise SourceError(f"{path}: act_fn {kind!r:.40} is not supported")
