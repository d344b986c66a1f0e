"""Qwen-Scope: one `layer{n}.sae.pt` per layer, a dict of four fp32 tensors; TopK, no centring.

W_enc (d_sae, d_model)   b_enc (d_sae,)   W_dec (d_model, d_sae)   b_dec (d_model,)

Files of this name that hold two linear layers are read too: encoder.weight and encoder.bias,
decoder.weight and decoder.bias.
"""

from pathlib import Path

from saescope.sources.formats.configs import Config
from saescope.sources.formats.containers import read_torch
from saescope.sources.formats.tensors import SaeWeights, TensorNames, read_weights

_NAMES = TensorNames("W_enc", "b_enc", "W_dec", "b_dec", encoder_rows=True, decoder_rows=False)
_LINEAR_NAMES = TensorNames(
    "encoder.weight",
    "encoder.bias",
    "decoder.weight",
    "decoder.bias",
    encoder_rows=True,
    decoder_rows=False,
)


def read(path: Path, config: Config) -> SaeWeights:
    """The SAE, mapped: unused tensors are never read from disk. Its k is not in the file.

    Raises SourceError for a file that is damaged, holds more than tensors, or has other names or
    shapes.
    """
    del config
    state = read_torch(path)
    names = _LINEAR_NAMES if _LINEAR_NAMES.W_enc in state else _NAMES
    return read_weights(path, state, names)
