"""Load the full causal LM for generation, reusing blocks that are already loaded."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saescope.engine.config import FINAL_NORMS, read_config
from saescope.engine.weights import Weights, read_tensors
from saescope.errors import SourceError, first_line
from saescope.sources.files import Files, open_files


def load_whole(
    source: str, loaded: nn.ModuleList, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """Return the full transformers causal LM of a checkpoint; its first blocks are `loaded`.

    Raises SourceError if the rest of the checkpoint is missing, damaged or does not fit.
    """
    from transformers import GenerationConfig

    files = open_files(source)
    config = read_config(files)
    model = causal_lm(config, dtype)
    decoder = decoder_of(model)
    path, blocks = blocks_of(decoder, config.num_hidden_layers)
    weights = Weights.open(decoder, files, dtype, device)
    loaded_paths = tuple(f"{path}.{layer}." for layer in range(len(loaded)))
    weights.fill([name for name in weights.names if not name.startswith(loaded_paths)])
    weights.close()
    for layer, block in enumerate(loaded):
        blocks[layer] = block
    _fill_head(model, files, dtype, device, tied=config.tie_word_embeddings)
    if "generation_config.json" in files.names():
        folder = files.path("generation_config.json").parent
        model.generation_config = GenerationConfig.from_pretrained(folder, trust_remote_code=False)
    whole: nn.Module = model.eval().requires_grad_(False)
    return whole


def causal_lm(config: Any, dtype: torch.dtype) -> Any:
    """Return this config's causal LM without weights; raise SourceError if there is none."""
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM  # its methods have no types
    try:
        with torch.device("meta"):
            return auto.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # config validation raises model-specific exceptions
        raise SourceError(
            f"architecture {config.model_type!r} cannot generate: {first_line(error)}"
        ) from error


def decoder_of(whole: nn.Module) -> nn.Module:
    """Return the module of a causal LM whose forward pass runs the blocks."""
    prefix = whole.base_model_prefix
    return whole.get_submodule(str(prefix))


def blocks_of(decoder: nn.Module, n_layers: int) -> tuple[str, nn.ModuleList]:
    """Return the path and the ModuleList of a decoder's blocks."""
    for path, module in decoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return path, module
    raise SourceError(f"{type(decoder).__name__} has no list of {n_layers} blocks")


def final_norm(decoder: nn.Module) -> str:
    """Return the name of a decoder's norm after its last block."""
    for name in FINAL_NORMS:
        if isinstance(getattr(decoder, name, None), nn.Module):
            return name
    raise SourceError(f"{type(decoder).__name__} has no final norm")


def logit_lens(whole: nn.Module, vectors: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
    """Return the logits of vectors taken as final residuals: final norm, then lm_head."""
    decoder = decoder_of(whole)
    norm = decoder.get_submodule(final_norm(decoder))
    head = whole.get_output_embeddings()  # type: ignore[operator]
    dtype = next(head.parameters()).dtype
    with torch.inference_mode():
        logits: Tensor = head(norm(vectors.to(dtype)[None]))[0].float()
    return logits


def _fill_head(
    model: Any, files: Files, dtype: torch.dtype, device: torch.device, *, tied: bool
) -> None:
    """Give the lm_head its tensors; if `tied`, its weight is the embedding's."""
    head = model.get_output_embeddings()
    path = next(name for name, module in model.named_modules() if module is head)
    shapes = {name: tensor.shape for name, tensor in head.state_dict().items()}
    if tied:
        head.weight = model.get_input_embeddings().weight
        shapes.pop("weight")
    if not shapes:
        return
    needed = {f"{path}.{name}": shape for name, shape in shapes.items()}
    tensors = read_tensors(files, needed, dtype, device)
    state = {name.removeprefix(f"{path}."): tensor for name, tensor in tensors.items()}
    head.load_state_dict(state, assign=True, strict=False)
