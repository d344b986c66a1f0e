"""Load the full causal LM for generation, reusing blocks that are already loaded."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saescope.engine.contents import Contents
from saescope.engine.stock import blocks_of, decoder_of, final_norm, head_path
from saescope.engine.weights import Weights
from saescope.errors import SourceError, whole_reason
from saescope.sources.declared_sizes import check_config_file

_GENERATION = "generation_config.json"


def load_whole(contents: Contents, loaded: nn.ModuleList, device: torch.device) -> nn.Module:
    """Return the full causal LM as stock transformers opens it; its first blocks are `loaded`.

    Parts for images or sound have no weights: what they compute is NaN. Raises SourceError if the
    rest of the text model is missing, damaged or does not fit.
    """
    files, contents = contents.files, contents.again()
    model, decoder = contents.model, contents.text_decoder
    path, blocks = blocks_of(decoder, contents.config.text)
    weights = Weights(contents, decoder, contents.decoder_path, device)
    loaded_paths = tuple(f"{path}.{layer}." for layer in range(len(loaded)))
    weights.fill([name for name in weights.names if not name.startswith(loaded_paths)])
    weights.close()
    for layer, block in enumerate(loaded):
        blocks[layer] = block
    _fill_head(contents, device)
    _fill_with_nan(model, device)
    if _GENERATION in files.names():
        model.generation_config = _generation_config(files.path(_GENERATION))
    whole: nn.Module = model.eval().requires_grad_(False)
    return whole


def _generation_config(path: Path) -> Any:
    """Return a generation config; raise SourceError if it is damaged."""
    from transformers import GenerationConfig

    check_config_file(path)
    advice = "correct it, or remove it to use the tokenizer's end token"
    try:
        config = GenerationConfig.from_pretrained(path.parent, trust_remote_code=False)
    except Exception as error:  # validation raises whatever the values lead to
        reason = whole_reason(error)
        raise SourceError(f"{path} is no generation config: {reason}; {advice}") from error
    ends = config.eos_token_id
    for token in ends if isinstance(ends, list) else [ends]:
        if token is not None and (isinstance(token, bool) or not isinstance(token, int)):
            raise SourceError(f"{path}: eos_token_id {token!r:.40} is no token id; {advice}")
    return config


def _fill_head(contents: Contents, device: torch.device) -> None:
    """Give the lm_head its tensors; if it is tied, its weight is the embedding's."""
    model = contents.model
    head = model.get_output_embeddings()
    if contents.tied:
        head.weight = model.get_input_embeddings().weight
    path = f"{head_path(model)}."
    weights = Weights(contents, head, path, device)
    weights.fill([name for name in weights.names if not (contents.tied and name == "weight")])
    weights.close()


def _fill_with_nan(model: nn.Module, device: torch.device) -> None:
    """Give parameters that were not loaded a single NaN in all places, which takes no memory.

    transformers takes the model's device from its first parameter, often one that reads images.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                nan = torch.full((), torch.nan, dtype=parameter.dtype, device=device)
                module.register_parameter(
                    name, nn.Parameter(nan.expand(parameter.shape), requires_grad=False)
                )


def logit_lens(whole: nn.Module, vectors: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
    """Return the logits of vectors taken as final residuals: final norm, then lm_head."""
    decoder = decoder_of(whole)
    norm = decoder.get_submodule(final_norm(decoder, decoder.config))
    head = whole.get_output_embeddings()  # type: ignore[operator]
    dtype = next(head.parameters()).dtype
    with torch.inference_mode():
        logits: Tensor = head(norm(vectors.to(dtype)[None]))[0].float()
    return logits
