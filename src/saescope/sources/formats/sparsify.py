"""EleutherAI's sparsify: a folder named by its hook point; TopK of h - b_dec.

`cfg.json` and `sae.safetensors`:
encoder.weight (d_sae, d_model)   encoder.bias (d_sae,)   W_dec (d_sae, d_model)   b_dec (d_model,)
"""

from dataclasses import replace
from pathlib import Path

from saescope.errors import SourceError
from saescope.sources.formats.configs import Config, flag, positive_int, unsupported
from saescope.sources.formats.containers import read_safetensors
from saescope.sources.formats.tensors import (
    SaeWeights,
    TensorNames,
    fold_centring,
    read_weights,
)

_NAMES = TensorNames(
    "encoder.weight", "encoder.bias", "W_dec", "b_dec", encoder_rows=True, decoder_rows=True
)


def read(path: Path, config: Config) -> SaeWeights:
    """The SAE with centring folded in.

    Raises SourceError for damaged files, transcoders, and other activations.
    """
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise SourceError(f"{path}: activation {activation!r:.40} is not supported")
    if flag(config, "transcode"):
        raise unsupported(path, "it is a transcoder: it decodes to another place than it reads")
    if flag(config, "skip_connection"):
        raise unsupported(path, "it adds a linear map of its input (skip_connection)")
    if flag(config, "signed"):
        raise unsupported(path, "its activations are signed")
    weights = read_weights(path, read_safetensors(path), _NAMES)
    return fold_centring(replace(weights, k=positive_int(config, "k")))
