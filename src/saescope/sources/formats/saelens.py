"""SAELens: a folder with `cfg.json` and `sae_weights.safetensors`, of version 6 and before.

W_enc (d_model, d_sae)   b_enc (d_sae,)   W_dec (d_sae, d_model)   b_dec (d_model,)
threshold (d_sae,) for JumpReLU; gated SAEs have b_gate, b_mag, r_mag (d_sae,) instead of b_enc.

normalize_activations: layer_norm and constant_norm_rescale are done per token by the engine;
expected_average_only_in is a constant, which `activation_scaler.json` beside a checkpoint holds, or
`norm_scaling_factor` in the config.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

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
    InputNorm,
    SaeWeights,
    TensorNames,
    fold_centring,
    fold_decoder_norm,
    fold_gate,
    fold_input_scale,
    fold_mean,
    get_tensor,
    read_weights,
    with_threshold,
)

_NAMES = TensorNames("W_enc", "b_enc", "W_dec", "b_dec", encoder_rows=False, decoder_rows=True)
_ARCHITECTURES = ("standard", "topk", "jumprelu", "gated")
SCALE_FILE, SCALE_KEYS = "activation_scaler.json", ("norm_scaling_factor", "scaling_factor")
_PER_TOKEN: Mapping[object, InputNorm] = {
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}


def read(path: Path, config: Config) -> SaeWeights:
    """The SAE with centring and decoder norms folded in.

    Raises SourceError for damaged files, and for what cannot be folded: unknown scales of the
    input, scales of finetuning, and other architectures.
    """
    architecture = _architecture(config)
    _refuse_unsupported(path, config, architecture)
    state = read_safetensors(path)
    _refuse_finetuning_scale(path, state)
    weights = _activated(path, config, _with_pre_bias(path, state), architecture)
    if flag(config, "apply_b_dec_to_input", default=True) or "b_pre" in state:
        weights = fold_centring(weights)
    input_norm = _PER_TOKEN.get(config.get("normalize_activations"), "none")
    if _reads_centred_residuals(config) or input_norm == "layer_norm":
        weights = fold_mean(weights)
    if needs_scale(config):
        weights = fold_input_scale(weights, _scale(path, config))
    if flag(config, "rescale_acts_by_decoder_norm"):
        weights = fold_decoder_norm(weights)
    return replace(weights, input_norm=input_norm)


def needs_scale(config: Config) -> bool:
    """Whether the SAE was trained on residuals times a constant that is not in its weights."""
    return config.get("normalize_activations") in ("expected_average_only_in", True)


def _scale(path: Path, config: Config) -> float:
    for key in SCALE_KEYS:
        if config.get(key) is not None:
            return positive_float(config, key)
    raise SourceError(
        f"{path}: its input is normalised by a constant that its files do not hold "
        f"(normalize_activations {config['normalize_activations']!r:.40}): write it as "
        f"{SCALE_KEYS[0]} into cfg.json, or save the SAE after fold_activation_norm_scaling_factor"
    )


def _with_pre_bias(path: Path, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`b_pre` alone is the bias subtracted before and added after; beside b_dec it is unknown."""
    if "b_pre" not in state:
        return state
    if "b_dec" in state:
        raise unsupported(path, "it has both b_pre and b_dec, which SAELens does not know")
    others = {name: tensor for name, tensor in state.items() if name != "b_pre"}
    return {**others, "b_dec": state["b_pre"]}


def _architecture(config: Config) -> str:
    """Before version 6, a TopK SAE was a standard one with activation_fn topk."""
    architecture = config.get("architecture", "standard")
    if architecture == "standard" and _activation(config) == "topk":
        return "topk"
    return str(architecture)


def _activation(config: Config) -> object:
    return config.get("activation_fn", config.get("activation_fn_str", "relu"))


def _refuse_unsupported(path: Path, config: Config, architecture: str) -> None:
    if architecture not in _ARCHITECTURES:
        hint = " (save it with save_inference_model)" if "batchtopk" in architecture else ""
        raise SourceError(
            f"{path}: SAELens architecture {architecture!r:.40} is not supported{hint}"
        )
    activation = _activation(config)
    if activation not in ("relu", "topk"):
        raise SourceError(f"{path}: activation_fn {activation!r:.40} is not supported")
    normalization = config.get("normalize_activations", "none")
    known = (*_PER_TOKEN, "none", None, False)
    if normalization not in known and not needs_scale(config):
        raise unsupported(path, f"its input is normalised ({normalization!r:.40})")
    if normalization == "constant_norm_rescale" and _reads_centred_residuals(config):
        raise unsupported(path, "its input is centred, then rescaled per token")
    reshape = config.get("reshape_activations", "none")
    if reshape not in ("none", None):
        raise unsupported(path, f"its input is reshaped ({reshape!r:.40})")


def _refuse_finetuning_scale(path: Path, state: Mapping[str, Tensor]) -> None:
    scale = state.get("scaling_factor", state.get("finetuning_scaling_factor"))
    if scale is None:
        return
    scale = scale.float()
    if not torch.allclose(scale, torch.ones_like(scale)):
        raise unsupported(path, "activations are scaled after finetuning (scaling_factor)")


def _activated(
    path: Path, config: Config, state: Mapping[str, Tensor], architecture: str
) -> SaeWeights:
    """The tensors with their activation: k, threshold or gate."""
    if architecture == "gated":
        state = {**state, "b_enc": get_tensor(path, state, "b_mag")}
    weights = read_weights(path, state, _NAMES)
    match architecture:
        case "gated":
            r_mag, gate_bias = get_tensor(path, state, "r_mag"), get_tensor(path, state, "b_gate")
            return fold_gate(path, weights, r_mag=r_mag, gate_bias=gate_bias)
        case "jumprelu":
            return with_threshold(path, state, weights, "jumprelu")
        case "topk":
            holder = config if "k" in config else section(config, "activation_fn_kwargs")
            return replace(weights, activation="topk", k=positive_int(holder, "k"))
        case _:
            return replace(weights, activation="relu")


def _reads_centred_residuals(config: Config) -> bool:
    """Whether TransformerLens centred the writing weights: residuals then have mean zero."""
    metadata = section(config, "metadata") or config
    options = section(metadata, "model_from_pretrained_kwargs")
    return options.get("center_writing_weights") is True
