"""SAELens: a folder with `cfg.json` and `sae_weights.safetensors`, of version 6 and before.

W_enc (d_model, d_sae)   b_enc (d_sae,)   W_dec (d_sae, d_model)   b_dec (d_model,)   threshold (d_sae,)
Gated SAEs have b_gate, b_mag and r_mag (d_sae,) instead of b_enc.
"""

from dataclasses import replace
from pathlib import Path

import torch

from saescope.errors import SourceError
from saescope.sources.formats.configs import Config, flag, part, refuse, whole
from saescope.sources.formats.containers import read_safetensors
from saescope.sources.formats.tensors import (
    SaeWeights,
    by_decoder_norm,
    centred_by_decoder_bias,
    gated,
    tensor_of,
    threshold_of,
    weights_of,
)

_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def read(path: Path, config: Config) -> SaeWeights:
    """The SAE with centring and decoder norms folded in.

    Raises SourceError for damaged files, and for what cannot be folded: an input normalised token by token, scales of
    finetuning, and architectures other than standard, topk, jumprelu and gated.
    """
    kind = _architecture(config)
    _refuse_other_formulae(path, config, kind)
    state = read_safetensors(path)
    scale = state.get("scaling_factor", state.get("finetuning_scaling_factor"))
    if scale is not None and not torch.allclose(
        scale.float(), torch.ones_like(scale, dtype=torch.float32)
    ):
        raise refuse(path, "activations are scaled after finetuning (scaling_factor)")
    if kind == "gated":
        named = {**state, "b_enc": tensor_of(path, state, "b_mag")}
        weights = weights_of(path, named, _NAMES, encoder_in_rows=False, decoder_in_rows=True)
        weights = gated(path, state, ("r_mag", "b_gate"), weights)
    else:
        weights = weights_of(path, state, _NAMES, encoder_in_rows=False, decoder_in_rows=True)
    if kind == "jumprelu":
        weights = replace(
            weights,
            activation="jumprelu",
            threshold=threshold_of(path, state, "threshold", weights),
        )
    elif kind == "topk":
        kwargs = part(config, "activation_fn_kwargs")
        weights = replace(
            weights, activation="topk", k=whole(config if "k" in config else kwargs, "k")
        )
    elif kind == "standard":
        weights = replace(weights, activation="relu")
    if flag(config, "apply_b_dec_to_input", default=True):
        weights = centred_by_decoder_bias(weights)
    if (
        part(part(config, "metadata") or config, "model_from_pretrained_kwargs").get(
            "center_writing_weights"
        )
        is True
    ):
        centred = weights.W_enc.float() - weights.W_enc.float().mean(dim=1, keepdim=True)
        weights = replace(weights, W_enc=centred)  # it reads residuals less their own mean
    return by_decoder_norm(weights) if flag(config, "rescale_acts_by_decoder_norm") else weights


def _architecture(config: Config) -> str:
    """Before version 6 a TopK SAE was a standard one with another activation_fn."""
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    kind = config.get("architecture", "standard")
    return "topk" if kind == "standard" and activation == "topk" else str(kind)


def _refuse_other_formulae(path: Path, config: Config, kind: str) -> None:
    if kind not in ("standard", "topk", "jumprelu", "gated"):
        instead = " (save it with save_inference_model)" if "batchtopk" in kind else ""
        raise SourceError(f"{path}: SAELens architecture {kind!r:.40} is not supported{instead}")
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if activation not in ("relu", "topk"):
        raise SourceError(f"{path}: activation_fn {activation!r:.40} is not supported")
    norm = config.get("normalize_activations", "none")
    if norm not in ("none", None, False):
        what = (
            "by a constant that its files do not hold"
            if norm in ("expected_average_only_in", True)
            else "by token"
        )
        raise refuse(path, f"its input is normalised {what} (normalize_activations {norm!r:.40})")
    if config.get("reshape_activations", "none") not in ("none", None):
        raise refuse(path, f"its input is reshaped ({config['reshape_activations']!r:.40})")
