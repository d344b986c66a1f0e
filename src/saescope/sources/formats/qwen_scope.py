"""Qwen-Scope: one `layer{n}.sae.pt` a layer, a dict of four fp32 tensors; TopK, nothing is subtracted.

W_enc (d_sae, d_model)   b_enc (d_sae,)   W_dec (d_model, d_sae)   b_dec (d_model,)
"""

from pathlib import Path

from saescope.sources.formats.configs import Config
from saescope.sources.formats.containers import read_torch
from saescope.sources.formats.tensors import SaeWeights, weights_of


def read(path: Path, config: Config) -> SaeWeights:
    """The SAE, mapped: a tensor that is not used is never read from disk. Its k is not in the file.

    Raises SourceError for a file that is damaged, holds anything but tensors, or has other names or shapes.
    """
    del config
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    return weights_of(path, read_torch(path), names, encoder_in_rows=True, decoder_in_rows=False)
