"""Llama Scope (OpenMOSS): `hyperparams.json` and `checkpoints/final.safetensors`; JumpReLU.

encoder.weight (d_sae, d_model)   encoder.bias (d_sae,)
decoder.weight (d_model, d_sae)   decoder.bias (d_model,)
Trained on s·h with s = sqrt(d_model) / mean norm. As in the makers' own loader, scales and decoder
norms are folded in: an activation is the length of its contribution to the residual, and the
threshold has that unit.
"""

import math
from dataclasses import replace
from pathlib import Path

import torch

from saescope.errors import SourceError
from saescope.sources.formats.configs import (
    Config,
    flag,
    positive_float,
    positive_int,
    section,
    unsupported,
)
from saescope.sources.formats.containers import read_safetensors
from saescope.sources.formats.tensors import (
    SaeWeights,
    TensorNames,
    fold_centring,
    fold_decoder_norm,
    fold_scales,
    read_weights,
)

_NAMES = TensorNames(
    "encoder.weight",
    "encoder.bias",
    "decoder.weight",
    "decoder.bias",
    encoder_rows=True,
    decoder_rows=False,
)


def read(path: Path, config: Config) -> SaeWeights:
    """The SAE with scales, centring and decoder norms folded in.

    Raises SourceError for damaged files, transcoders, gated linear encoders, and inputs normalised
    per token.
    """
    if flag(config, "use_glu_encoder"):
        raise unsupported(path, "its encoder has gated linear units (use_glu_encoder)")
    hook = config.get("hook_point_in")
    if config.get("hook_point_out", hook) != hook:
        raise unsupported(path, "it is a transcoder: it decodes to another place than it reads")
    state = dict(read_safetensors(path))
    if not flag(config, "use_decoder_bias", default=True) and "decoder.weight" in state:
        state["decoder.bias"] = torch.zeros(len(state["decoder.weight"]))
    weights = read_weights(path, state, _NAMES)
    weights = _fold_dataset_norms(path, config, weights)
    if flag(config, "apply_decoder_bias_to_pre_encoder"):
        weights = fold_centring(weights)
    if flag(config, "sparsity_include_decoder_norm", default=True):
        weights = fold_decoder_norm(weights)
    return _activated(path, config, weights)


def _fold_dataset_norms(path: Path, config: Config, weights: SaeWeights) -> SaeWeights:
    norms = section(config, "dataset_average_activation_norm")
    normalization = config.get("norm_activation", "dataset-wise" if norms else "none")
    if normalization in ("none", "inference"):
        return fold_scales(weights, 1.0, 1.0)
    if normalization != "dataset-wise":
        setting = f"norm_activation {normalization!r:.40}"
        raise unsupported(path, f"its input is normalised per token ({setting})")
    root = math.sqrt(weights.W_enc.shape[1])
    norm_in = positive_float(norms, "in")
    norm_out = positive_float(norms, "out") if "out" in norms else norm_in
    return fold_scales(weights, root / norm_in, root / norm_out)


def _activated(path: Path, config: Config, weights: SaeWeights) -> SaeWeights:
    function = str(config.get("act_fn", "jumprelu")).lower()
    if function not in ("topk", "jumprelu", "relu"):
        raise SourceError(f"{path}: act_fn {function!r:.40} is not supported")
    if function != "relu" and config.get("jump_relu_threshold", 0):
        threshold = torch.full((len(weights.b_enc),), positive_float(config, "jump_relu_threshold"))
        return replace(weights, activation="jumprelu", threshold=threshold)
    if function == "topk":
        return replace(weights, k=positive_int(config, "top_k"))
    return replace(weights, activation="relu")
