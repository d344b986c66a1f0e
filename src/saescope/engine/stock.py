"""The model class that stock transformers opens a checkpoint with, built without weights."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from saescope.engine.config import FINAL_NORMS, ModelConfig, unsupported
from saescope.errors import SourceError, first_line


def stock_model(config: ModelConfig, dtype: torch.dtype) -> Any:
    """Return the whole causal LM of a checkpoint on the meta device.

    A multimodal checkpoint that has no class for its text alone gives the multimodal class. Raises
    SourceError if this transformers has no class, or if the config does not describe it.
    """
    auto = auto_class(config)
    try:
        with torch.device("meta"):
            model = auto.from_config(config.outer, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # config validation raises model-specific exceptions
        raise unsupported(config.text, first_line(error)) from error
    return model.eval().requires_grad_(False)


def auto_class(config: ModelConfig) -> Any:
    """Return the class of transformers that opens this checkpoint: for text, else multimodal."""
    import transformers

    if type(config.outer) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForImageTextToText


def decoder_of(model: nn.Module) -> nn.Module:
    """Return the module of a causal LM whose forward pass runs the text decoder's blocks."""
    from transformers import PreTrainedModel

    decoder: Any = model.get_decoder()  # type: ignore[operator]
    # Llama 4 answers with a causal LM: its decoder is the model around the token embedding.
    owner = path_of(decoder.get_input_embeddings(), decoder).rpartition(".")[0]
    inner: nn.Module = decoder.get_submodule(owner)
    found: nn.Module = inner if isinstance(inner, PreTrainedModel) else decoder
    return found


def check_decoder(decoder: nn.Module, config: Any) -> None:
    """Raise SourceError unless a decoder has what saescope needs: positions, blocks and a norm."""
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        raise unsupported(config, "its forward() takes no position_ids, which saescope needs")
    blocks_of(decoder, config)
    final_norm(decoder, config)


def path_of(part: nn.Module, model: nn.Module) -> str:
    """Return the name of a module inside another one."""
    paths = (name for name, module in model.named_modules() if module is part)
    return str(next(paths))


def blocks_of(decoder: nn.Module, config: Any) -> tuple[str, nn.ModuleList]:
    """Return the path and the ModuleList of a decoder's blocks; raise SourceError if unclear."""
    n_layers = config.num_hidden_layers
    candidates = [item for item in _outer_lists(decoder) if len(item[1]) == n_layers]
    if len(candidates) != 1:
        raise unsupported(
            config, f"expected one ModuleList of {n_layers} blocks, found {len(candidates)}"
        )
    return candidates[0]


def final_norm(decoder: nn.Module, config: Any) -> str:
    """Return the name of a decoder's norm after its last block; raise SourceError if unclear."""
    norms = [name for name in FINAL_NORMS if isinstance(getattr(decoder, name, None), nn.Module)]
    if len(norms) != 1:
        raise unsupported(config, f"expected one final norm beside the blocks, found {len(norms)}")
    return norms[0]


def head_path(model: Any) -> str:
    """Return the path of a causal LM's lm_head."""
    head = model.get_output_embeddings()
    if head is None:
        raise SourceError(f"{type(model).__name__} has no lm_head")
    return path_of(head, model)


def _outer_lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Yield the path and list of each ModuleList that is not inside another one."""
    for path, module in model.named_modules():
        is_inner = any(part.isdigit() for part in path.split("."))
        if isinstance(module, nn.ModuleList) and not is_inner:
            yield path, module
