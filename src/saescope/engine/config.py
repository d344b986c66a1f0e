"""A checkpoint's config, read by transformers and refused unless it is a causal decoder's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saescope.errors import SourceError, whole_reason
from saescope.sources.checkpoint import gguf_name
from saescope.sources.custom_code import custom_code
from saescope.sources.declared_sizes import check_config_file, check_gguf_file
from saescope.sources.files import Files
from saescope.sources.mistaken import why_no_model

# Names that architectures give the norm after their last block.
FINAL_NORMS = (
    "norm", "ln_f", "norm_f", "final_norm", "final_layernorm", "final_layer_norm", "layer_norm",
    "embedding_norm",
)  # fmt: skip


_ADVICE = "; correct it or download it again, or use a transformers that knows it"


@dataclass(frozen=True)
class ModelConfig:
    """A checkpoint's whole config, and the part that describes its text decoder.

    `gguf` names the file that holds config, weights and tokenizer, if it is a GGUF file.
    """

    outer: Any
    text: Any
    gguf: str | None = None


def read_config(files: Files) -> ModelConfig:
    """Return the config of a checkpoint; raise SourceError unless it has a causal text decoder."""
    from transformers import AutoConfig

    gguf = gguf_name(files)
    if gguf is None and "config.json" not in files.names():
        reason = (
            why_no_model(files.names()) or "has no file config.json: give the folder of a model"
        )
        raise SourceError(f"{files.name} {reason}")
    path = files.path(gguf or "config.json")
    source: dict[str, Any] = {"gguf_file": gguf} if gguf is not None else {}
    if gguf is not None:
        check_gguf_file(path)
    else:
        check_config_file(path)
    try:
        outer = AutoConfig.from_pretrained(path.parent, trust_remote_code=False, **source)
        text = outer.get_text_config(decoder=True)
    except Exception as error:  # config validation raises model-specific exceptions
        raise SourceError(
            f"{path} is no model config this transformers knows: "
            f"{custom_code(files, (path.name,)) or whole_reason(error) + _ADVICE}"
        ) from error
    _refuse_other_architectures(outer, text)
    _refuse_missing_sizes(path, text)
    if text.dtype is None:
        # A multimodal model may state its dtype once for all its parts.
        text.dtype = outer.dtype
    return ModelConfig(outer, text, gguf)


def _refuse_other_architectures(outer: Any, text: Any) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if getattr(outer, "is_encoder_decoder", False):
        raise unsupported(outer, "it is an encoder and a decoder, not a decoder alone")
    is_causal_lm = type(outer) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not is_causal_lm and type(outer) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise unsupported(outer, "it is no causal language model")
    is_bidirectional = getattr(text, "use_bidirectional_attention", None) in (True, "all")
    if is_bidirectional or not getattr(text, "is_causal", True):
        raise unsupported(text, "its attention looks to the right")


def unsupported(config: Any, why: str) -> SourceError:
    """Return the error for an architecture that cannot be used."""
    return SourceError(f"architecture {config.model_type!r} is not supported: {why}")


def _refuse_missing_sizes(path: Path, text: Any) -> None:
    for name in ("num_hidden_layers", "hidden_size"):
        if not isinstance(getattr(text, name, None), int):
            raise SourceError(
                f"{path} does not describe a decoder: it has no num_hidden_layers and hidden_size"
            )


def max_length(text: Any) -> int:
    """Return the maximum length of a prompt in tokens."""
    limit = int(getattr(text, "max_position_embeddings", None) or 2**31)
    rope = getattr(text, "rope_parameters", None) or {}
    # Some models have one set of parameters per type of layer.
    for parameters in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        original = int(parameters.get("original_max_position_embeddings") or limit)
        if parameters.get("rope_type") == "longrope":
            # Beyond this, one long prompt would change the frequencies of all prompts in its batch.
            limit = min(limit, original)
        elif parameters.get("rope_type") == "yarn":
            # Qwen documents YaRN as an entry in the config that leaves max_position_embeddings.
            limit = max(limit, int(original * float(parameters.get("factor") or 1)))
    return limit
