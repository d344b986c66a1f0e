"""The whole model, able to generate, around blocks that are loaded already: it shares them, and reads only the rest."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saescope.engine.config import FINAL_NORMS, read_config
from saescope.engine.weights import Weights, read_tensors
from saescope.errors import SourceError, first_line
from saescope.sources.files import Files, open_files


def load_whole(
    source: str, shared: nn.ModuleList, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """transformers' own causal LM of the same checkpoint, whose first blocks are `shared`.

    Raises SourceError where the rest of the checkpoint is missing, damaged or does not fit.
    """
    from transformers import GenerationConfig

    files = open_files(source)
    config = read_config(files)
    model = causal_lm(config, dtype)
    decoder = getattr(model, model.base_model_prefix)
    path, blocks = blocks_of(decoder, config.num_hidden_layers)
    weights = Weights.open(decoder, files, dtype, device)
    loaded = tuple(f"{path}.{layer}." for layer in range(len(shared)))
    weights.fill([name for name in weights.names if not name.startswith(loaded)])
    weights.close()
    for layer, block in enumerate(shared):
        blocks[layer] = block
    _fill_head(model, config, files, dtype, device)
    if "generation_config.json" in files.names():
        model.generation_config = GenerationConfig.from_pretrained(
            files.path("generation_config.json").parent
        )
    whole: nn.Module = model.eval().requires_grad_(False)
    return whole


def causal_lm(config: Any, dtype: torch.dtype) -> Any:
    """transformers' causal LM of this config without memory; raises SourceError where there is none."""
    from transformers import AutoModelForCausalLM

    build: Any = AutoModelForCausalLM.from_config
    try:
        with torch.device("meta"):
            return build(config, dtype=dtype)
    except Exception as error:  # models check their configs by exceptions of their own
        raise SourceError(
            f"architecture {config.model_type!r} cannot generate: {first_line(error)}"
        ) from error


def decoder_of(whole: nn.Module) -> nn.Module:
    """The module of a causal LM whose forward pass runs the blocks."""
    prefix = whole.base_model_prefix
    return whole.get_submodule(str(prefix))


def logit_lens(whole: nn.Module, vectors: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
    """Logits of residual vectors as if they were the last: through the model's own final norm and lm_head."""
    decoder, head = decoder_of(whole), whole.get_output_embeddings()  # type: ignore[operator]
    norm = next(
        getattr(decoder, name)
        for name in FINAL_NORMS
        if isinstance(getattr(decoder, name, None), nn.Module)
    )
    dtype = next(head.parameters()).dtype
    with torch.inference_mode():
        logits: Tensor = head(norm(vectors.to(dtype)[None]))[0].float()
    return logits


def blocks_of(decoder: nn.Module, n_layers: int) -> tuple[str, nn.ModuleList]:
    """The list of a decoder's blocks and its name there."""
    return next(
        (name, module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    )


def _fill_head(
    model: Any, config: Any, files: Files, dtype: torch.dtype, device: torch.device
) -> None:
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    own = {key: tensor.shape for key, tensor in head.state_dict().items()}
    if config.tie_word_embeddings:
        head.weight = model.get_input_embeddings().weight
        own.pop("weight")
    wanted = {f"{name}.{key}": shape for key, shape in own.items()}
    state = read_tensors(files, wanted, dtype, device) if wanted else {}
    head.load_state_dict(
        {key.removeprefix(f"{name}."): t for key, t in state.items()}, assign=True, strict=False
    )
