"""A checkpoint's config, read by transformers and refused where no decoder reads from left to right."""

from typing import Any

from saescope.errors import SourceError, first_line
from saescope.sources.files import Files

# Names that architectures give the norm after their last block.
FINAL_NORMS = ("norm", "ln_f", "norm_f", "final_norm", "final_layernorm", "final_layer_norm")


def read_config(files: Files) -> Any:
    """The config of the text decoder, refused where the checkpoint has none that reads from left to right."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    path = files.path("config.json")
    try:
        whole = AutoConfig.from_pretrained(path.parent)
        config = whole.get_text_config()
    except Exception as error:  # configs check their fields by exceptions of their own
        raise SourceError(
            f"{path} is no model config this transformers knows: {first_line(error)}"
        ) from error
    if getattr(whole, "is_encoder_decoder", False):
        raise unsupported(whole, "it is an encoder and a decoder, not a decoder alone")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise unsupported(config, "it is no causal language model")
    both_ways = getattr(config, "use_bidirectional_attention", None) in (True, "all")
    if both_ways or not getattr(config, "is_causal", True):
        raise unsupported(config, "its attention looks to the right")
    if getattr(whole, "quantization_config", None) or getattr(config, "quantization_config", None):
        raise SourceError(
            f"{files.name} is quantised, which is not supported: give the model it was made from"
        )
    if not all(
        isinstance(getattr(config, name, None), int)
        for name in ("num_hidden_layers", "hidden_size")
    ):
        raise SourceError(
            f"{path} does not describe a decoder: it has no num_hidden_layers and hidden_size"
        )
    if config.dtype is None:
        config.dtype = (
            whole.dtype
        )  # a model of several kinds of input may say it once for all its parts
    return config


def unsupported(config: Any, why: str) -> SourceError:
    return SourceError(f"architecture {config.model_type!r} is not supported: {why}")
