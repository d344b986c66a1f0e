"""Qwen-Scope: one `layer{n}.sae.pt` per layer, a dict of four fp32 tensors; TopK, no centring.

W_enc (d_sae, d_model)   b_enc (d_sae,)   W_dec (d_model, d_sae)   b_dec (d_model,)
"""

from pathlib import Path

from saescope.sources.formats.configs import Config
from saescope.sources.formats.containers import read_torch
from saescope.sources.formats.tensors import SaeWeights, TensorNames, read_weights

_NAMES = TensorNames("W_enc", "b_enc", "W_dec", "b_dec", encoder_rows=True, decoder_rows=False)


def read(path: Path, config: Config) -> SaeWeights:
    """The SAE, mapped: unused tensors are never read from disk. Its k is not in the file.

    Raises SourceError for a file that is damaged, holds more than tensors, or has other names or
    shapes.
    """
    del config
    return read_weights(path, read_torch(path), _NAMES)
