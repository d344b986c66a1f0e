"""Gemma Scope: `params.npz` (the first, of Gemma 2) or `params.safetensors` (the second, of Gemma 3); JumpReLU.

W_enc (d_model, d_sae)   b_enc (d_sae,)   W_dec (d_sae, d_model)   b_dec (d_model,)   threshold (d_sae,)
The second's matrices are called w_enc and w_dec. Nothing is subtracted before encoding (arXiv 2408.05147).
"""

from dataclasses import replace
from pathlib import Path

from saescope.errors import SourceError
from saescope.sources.formats.configs import Config, flag, refuse
from saescope.sources.formats.containers import read_npz, read_safetensors
from saescope.sources.formats.tensors import SaeWeights, threshold_of, weights_of


def read(path: Path, config: Config) -> SaeWeights:
    """The SAE, mapped. Raises SourceError for damaged files, other shapes, and SAEs with a skip connection."""
    architecture = config.get("architecture", "jump_relu")
    if architecture not in ("jump_relu", "jumprelu"):
        raise SourceError(f"{path}: Gemma Scope architecture {architecture!r:.40} is not supported")
    state = read_npz(path) if path.suffix == ".npz" else read_safetensors(path)
    if "affine_skip_connection" in state or flag(config, "affine_connection"):
        raise refuse(path, "a transcoder adds its input's own linear map (affine_skip_connection)")
    w = "w" if "w_enc" in state else "W"
    names = (f"{w}_enc", "b_enc", f"{w}_dec", "b_dec")
    weights = weights_of(path, state, names, encoder_in_rows=False, decoder_in_rows=True)
    return replace(
        weights, activation="jumprelu", threshold=threshold_of(path, state, "threshold", weights)
    )
