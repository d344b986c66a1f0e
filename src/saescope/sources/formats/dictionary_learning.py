"""dictionary_learning: `config.json` and `ae.pt`; the class that it was trained as says the activation.

| class | encoder | decoder | biases | encodes |
| AutoEncoder | encoder.weight | decoder.weight | encoder.bias, bias | relu of h - bias, by decoder norm |
| AutoEncoderNew | encoder.weight | decoder.weight | encoder.bias, decoder.bias | relu of h |
| AutoEncoderTopK | encoder.weight | decoder.weight | encoder.bias, b_dec | the k largest of h - b_dec |
| BatchTopKSAE | encoder.weight | decoder.weight | encoder.bias, b_dec | over one threshold, of h - b_dec |
| MatryoshkaBatchTopKSAE | W_enc | W_dec | b_enc, b_dec | over one threshold, of h - b_dec |
| JumpReluAutoEncoder | W_enc | W_dec | b_enc, b_dec | over each feature's threshold, of h |
| GatedAutoEncoder | encoder.weight | decoder.weight | gate_bias, mag_bias, decoder_bias | gated, of h - decoder_bias |

encoder.weight is (d_sae, d_model), W_enc (d_model, d_sae), decoder.weight (d_model, d_sae), W_dec (d_sae, d_model).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from saescope.errors import SourceError
from saescope.sources.formats.configs import Config, part, whole
from saescope.sources.formats.containers import read_torch
from saescope.sources.formats.tensors import (
    SaeWeights,
    by_decoder_norm,
    centred_by_decoder_bias,
    gated,
    threshold_of,
    weights_of,
)


def read(path: Path, config: Config) -> SaeWeights:
    """The SAE with centring folded in; raises SourceError for damaged files and classes that are not known."""
    trainer = part(config, "trainer")
    state = dict(read_torch(path))
    match kind := trainer.get("dict_class"):
        case "AutoEncoder":  # its own loader gives decoder columns length 1
            weights = replace(_linear(path, state, "encoder.bias", "bias"), activation="relu")
            return by_decoder_norm(centred_by_decoder_bias(weights))
        case "AutoEncoderNew":
            return replace(_linear(path, state, "encoder.bias", "decoder.bias"), activation="relu")
        case "AutoEncoderTopK":
            weights = _linear(path, state, "encoder.bias", "b_dec")
            return centred_by_decoder_bias(replace(weights, k=whole(trainer, "k")))
        case "BatchTopKSAE" | "MatryoshkaBatchTopKSAE":
            plain = kind == "BatchTopKSAE"
            weights = (
                _linear(path, state, "encoder.bias", "b_dec") if plain else _matrices(path, state)
            )
            threshold = threshold_of(path, state, "threshold", weights)
            return centred_by_decoder_bias(
                replace(weights, activation="batchtopk", threshold=threshold)
            )
        case "JumpReluAutoEncoder":
            weights = _matrices(path, state)
            return replace(
                weights,
                activation="jumprelu",
                threshold=threshold_of(path, state, "threshold", weights),
            )
        case "GatedAutoEncoder":
            weights = _linear(path, state, "mag_bias", "decoder_bias")
            return centred_by_decoder_bias(gated(path, state, ("r_mag", "gate_bias"), weights))
    raise SourceError(f"{path}: dictionary_learning's class {kind!r:.40} is not supported")


def _linear(path: Path, state: dict[str, Any], b_enc: str, b_dec: str) -> SaeWeights:
    names = ("encoder.weight", b_enc, "decoder.weight", b_dec)
    return weights_of(path, state, names, encoder_in_rows=True, decoder_in_rows=False)


def _matrices(path: Path, state: dict[str, Any]) -> SaeWeights:
    return weights_of(
        path,
        state,
        ("W_enc", "b_enc", "W_dec", "b_dec"),
        encoder_in_rows=False,
        decoder_in_rows=True,
    )
