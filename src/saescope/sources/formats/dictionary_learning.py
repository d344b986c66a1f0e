"""dictionary_learning: `ae.pt` and `config.json`; the trained class decides the activation.

Without a config, the names of the tensors tell the class, unless several classes have them.

| class | matrices | b_enc, b_dec | encodes |
| AutoEncoder | linear | encoder.bias, bias | ReLU of h - b_dec, by decoder norm |
| AutoEncoderNew | linear | encoder.bias, decoder.bias | ReLU of h |
| AutoEncoderTopK | linear | encoder.bias, b_dec | TopK of h - b_dec |
| BatchTopKSAE | linear | encoder.bias, b_dec | one threshold, of h - b_dec |
| MatryoshkaBatchTopKSAE | plain | b_enc, b_dec | one threshold, of h - b_dec |
| JumpReluAutoEncoder | plain | b_enc, b_dec | a threshold per feature, of h |
| GatedAutoEncoder | linear | mag_bias, decoder_bias | gated by gate_bias, of h - b_dec |

linear: encoder.weight (d_sae, d_model) and decoder.weight (d_model, d_sae)
plain: W_enc (d_model, d_sae) and W_dec (d_sae, d_model)
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from saescope.errors import SourceError
from saescope.sources.formats.configs import Config, positive_int, section
from saescope.sources.formats.containers import read_torch
from saescope.sources.formats.tensors import (
    SaeWeights,
    TensorNames,
    fold_centring,
    fold_decoder_norm,
    fold_gate,
    get_tensor,
    read_weights,
    with_threshold,
)

_PLAIN = TensorNames("W_enc", "b_enc", "W_dec", "b_dec", encoder_rows=False, decoder_rows=True)


def _linear(b_enc: str, b_dec: str) -> TensorNames:
    return TensorNames(
        "encoder.weight", b_enc, "decoder.weight", b_dec, encoder_rows=True, decoder_rows=False
    )


_NAMES: Mapping[str, TensorNames] = {
    "AutoEncoder": _linear("encoder.bias", "bias"),
    "AutoEncoderNew": _linear("encoder.bias", "decoder.bias"),
    "AutoEncoderTopK": _linear("encoder.bias", "b_dec"),
    "BatchTopKSAE": _linear("encoder.bias", "b_dec"),
    "MatryoshkaBatchTopKSAE": _PLAIN,
    "JumpReluAutoEncoder": _PLAIN,
    "GatedAutoEncoder": _linear("mag_bias", "decoder_bias"),
}


def read(path: Path, config: Config) -> SaeWeights:
    """The SAE with centring folded in; raises SourceError for damaged files and other classes."""
    trainer = section(config, "trainer")
    state: Mapping[str, Any] = read_torch(path)
    dict_class = trainer.get("dict_class") if config else _class_by_names(path, state)
    if not isinstance(dict_class, str) or dict_class not in _NAMES:
        raise SourceError(
            f"{path}: dictionary_learning's class {dict_class!r:.40} is not supported"
        )
    weights = read_weights(path, state, _NAMES[dict_class])
    match dict_class:
        case "AutoEncoder":  # its own loader gives decoder columns norm 1
            return fold_decoder_norm(fold_centring(replace(weights, activation="relu")))
        case "AutoEncoderNew":
            return replace(weights, activation="relu")
        case "AutoEncoderTopK":
            k = positive_int(trainer, "k") if config else _stored_k(path, state)
            return fold_centring(replace(weights, k=k))
        case "JumpReluAutoEncoder":
            return with_threshold(path, state, weights, "jumprelu")
        case "GatedAutoEncoder":
            r_mag, gate_bias = (
                get_tensor(path, state, "r_mag"),
                get_tensor(path, state, "gate_bias"),
            )
            return fold_centring(fold_gate(path, weights, r_mag=r_mag, gate_bias=gate_bias))
        case _:
            return fold_centring(with_threshold(path, state, weights, "batchtopk"))


def _class_by_names(path: Path, state: Mapping[str, Any]) -> str:
    names = {str(name) for name in state}
    is_linear = "encoder.weight" in names
    if is_linear and "gate_bias" in names:
        return "GatedAutoEncoder"
    if is_linear and "bias" in names:
        return "AutoEncoder"
    if is_linear and "decoder.bias" in names:
        return "AutoEncoderNew"
    if is_linear and {"b_dec", "k"} <= names and "threshold" not in names:
        return "AutoEncoderTopK"
    if {"W_enc", "threshold"} <= names:
        return "MatryoshkaBatchTopKSAE" if "k" in names else "JumpReluAutoEncoder"
    raise SourceError(
        f"{path}: its tensors ({', '.join(sorted(names)[:8])}) do not tell which class of "
        "dictionary_learning it is, such as AutoEncoderTopK or BatchTopKSAE: add its config.json "
        '({"trainer": {"dict_class": ..., "k": ...}})'
    )


def _stored_k(path: Path, state: Mapping[str, Any]) -> int:
    k = state["k"]
    if isinstance(k, Tensor) and k.numel() == 1:
        k = k.item()
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise SourceError(f"{path}: k is {k!r:.40}, not a whole number of at least 1")
    return k
