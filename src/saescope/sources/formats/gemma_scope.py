"""Gemma Scope: `params.npz` (Gemma 2) or, of Gemma Scope 2, `params.safetensors` (Gemma 3).

W_enc (d_model, d_sae)   b_enc (d_sae,)   W_dec (d_sae, d_model)   b_dec (d_model,)
threshold (d_sae,)
JumpReLU without centring (arXiv 2408.05147). Gemma Scope 2 calls its matrices w_enc and w_dec.
"""

from pathlib import Path

from saescope.errors import SourceError
from saescope.sources.formats.configs import Config, flag, unsupported
from saescope.sources.formats.containers import read_npz, read_safetensors
from saescope.sources.formats.tensors import (
    SaeWeights,
    TensorNames,
    read_weights,
    with_threshold,
)

_NAMES = TensorNames("W_enc", "b_enc", "W_dec", "b_dec", encoder_rows=False, decoder_rows=True)
_NAMES_2 = TensorNames("w_enc", "b_enc", "w_dec", "b_dec", encoder_rows=False, decoder_rows=True)


def read(path: Path, config: Config) -> SaeWeights:
    """The SAE, mapped; raises SourceError for damaged files, other shapes, and transcoders."""
    architecture = config.get("architecture", "jump_relu")
    if architecture not in ("jump_relu", "jumprelu"):
        raise SourceError(f"{path}: Gemma Scope architecture {architecture!r:.40} is not supported")
    state = read_npz(path) if path.suffix == ".npz" else read_safetensors(path)
    if "affine_skip_connection" in state or flag(config, "affine_connection"):
        raise unsupported(
            path, "a transcoder adds a linear map of its input (affine_skip_connection)"
        )
    names = _NAMES_2 if "w_enc" in state else _NAMES
    weights = read_weights(path, state, names)
    return with_threshold(path, state, weights, "jumprelu")
