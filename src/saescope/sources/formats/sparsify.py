"""EleutherAI's sparsify: a folder named by its hook point with `cfg.json` and `sae.safetensors`; TopK of h - b_dec.

encoder.weight (d_sae, d_model)   encoder.bias (d_sae,)   W_dec (d_sae, d_model)   b_dec (d_model,)
"""

from dataclasses import replace
from pathlib import Path

from saescope.errors import SourceError
from saescope.sources.formats.configs import Config, flag, refuse, whole
from saescope.sources.formats.containers import read_safetensors
from saescope.sources.formats.tensors import SaeWeights, centred_by_decoder_bias, weights_of


def read(path: Path, config: Config) -> SaeWeights:
    """The SAE with its centring folded in; raises SourceError for damaged files, transcoders, and other activations."""
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise SourceError(f"{path}: activation {activation!r:.40} is not supported")
    if flag(config, "transcode"):
        raise refuse(path, "it is a transcoder: it decodes to another place than it reads")
    if flag(config, "skip_connection"):
        raise refuse(path, "it adds its input's own linear map (skip_connection)")
    if flag(config, "signed"):
        raise refuse(path, "its activations are signed")
    names = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
    weights = weights_of(
        path, read_safetensors(path), names, encoder_in_rows=True, decoder_in_rows=True
    )
    return centred_by_decoder_bias(replace(weights, k=whole(config, "k")))
