"""A causal LM from transformers, cut after the last layer needed.

Layers above it, the final norm and the lm_head are neither fetched nor read. Configs and modules
are recognised by what they have, not by their names.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from saescope.engine.config import FINAL_NORMS, max_length, read_config, unsupported
from saescope.engine.devices import Device, DType, choose_device, choose_dtype
from saescope.engine.pages import Pages, mapped_pages, release_pages
from saescope.engine.weights import Weights
from saescope.engine.whole import load_whole
from saescope.errors import SourceError, first_line
from saescope.sources.catalog import ModelSpec
from saescope.sources.checkpoint import TOKENIZER_FILES
from saescope.sources.files import Files, fingerprint, open_files

# Architectures that keep attention within each of several prompts in one row (tested one by one).
_PACKING_ARCHITECTURES = {
    "gemma2",
    "gemma3_text",
    "gpt2",
    "llama",
    "mistral",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
}


def load_lm(
    ref: str | Path,
    layers: Sequence[int] | None = None,
    *,
    dtype: DType = "auto",
    device: Device = "auto",
    offline: bool = False,
    streamed: bool = False,
) -> "LM":
    """Load the part of a model that computes the residual after each of `layers`.

    `ref` is a folder or a hub id (`owner/name@revision`). Blocks above the last of `layers`
    (default: all) are not read. `dtype` `auto` is bfloat16 if the checkpoint is stored so, else
    float32. If `streamed`, one block at a time is read when the model runs; such a model cannot
    generate. Raises SourceError for anything missing, damaged or unknown.

    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", layers=[2])
    >>> len(lm.blocks), lm.spec.n_layers, lm.spec.d_model
    (3, 6, 192)
    """
    files = open_files(str(ref), offline=offline)
    config = read_config(files)
    layers = range(config.num_hidden_layers) if layers is None else layers
    _refuse_missing_layers(files, layers, config.num_hidden_layers)
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(dtype, config)
    model = _model_without_weights(config, torch_dtype)
    blocks = _cut(model, config, last=max(layers))
    weights = Weights.open(model, files, torch_dtype, torch_device)
    _fill(weights, exclude=f"{_path_of(blocks, model)}." if streamed else None)
    tokenizer, tokenizer_files = read_tokenizer(files)
    packs_prompts = config.model_type in _PACKING_ARCHITECTURES
    return LM(
        spec=_spec(files, config, [*tokenizer_files, *weights.shards]),
        model=model,
        tokenizer=tokenizer,
        blocks=blocks,
        block_pages=tuple([] if streamed else mapped_pages(b.parameters()) for b in blocks),
        embedding_pages=mapped_pages(_embedding(model).parameters()),
        packs_prompts=packs_prompts,
        # A streamed model sees one block at a time and keeps no keys and values.
        shares_prefixes=packs_prompts and not streamed,
        max_length=max_length(config),
        vocab_size=int(config.vocab_size),
        dtype=torch_dtype,
        device=torch_device,
        source=files.source,
        streamed=weights if streamed else None,
    )


@final
@dataclass(frozen=True)
class LM:
    """A decoder cut after its last needed layer, its tokenizer, and what it is.

    Pages of weights that lie in files are released after use, so weights must not be changed in
    place: changes would be lost with the pages.

    Attributes:
        model: The decoder, without blocks above the last needed one and without its final norm.
        block_pages: For each block, the pages of its weights that are mapped from files.
        embedding_pages: The same for the embedding.
        packs_prompts: Whether one row may hold several prompts.
        shares_prefixes: Whether prompts may reuse the keys and values of a common prefix.
        max_length: The most tokens of a prompt.
        source: The path or hub id that opens the same checkpoint again.
        streamed: Where a streamed model's blocks get their weights; None if all are loaded.
    """

    spec: ModelSpec
    model: nn.Module
    tokenizer: Any
    blocks: nn.ModuleList
    block_pages: tuple[list[Pages], ...]
    embedding_pages: list[Pages]
    packs_prompts: bool
    shares_prefixes: bool
    max_length: int
    vocab_size: int
    dtype: torch.dtype
    device: torch.device
    source: str
    streamed: Weights | None = None

    @cached_property
    def whole(self) -> nn.Module:
        """transformers' own causal LM around these blocks; the rest is read on first use."""
        if self.streamed is not None:
            raise SourceError(
                f"{self.spec.repo} is streamed and cannot generate: load it with streamed=False"
            )
        return load_whole(self.source, self.blocks, self.dtype, self.device)

    @property
    def decoder(self) -> nn.Module:
        """The module whose forward pass runs the blocks."""
        path = _path_of(self.blocks, self.model)
        return self.model.get_submodule(path.rpartition(".")[0])

    @contextmanager
    def block_in_memory(
        self, layer: int, block: nn.Module, *, read_ahead: bool = True
    ) -> Iterator[None]:
        """Within the context, the block of `layer` has its weights; afterwards they are released.

        A streamed model reads them from its files and, with `read_ahead`, starts on the next block.
        """
        if self.streamed is None:
            try:
                yield
            finally:
                release_pages(self.block_pages[layer])
            return
        path = _path_of(self.blocks, self.model)
        following = None
        if read_ahead and layer + 1 < len(self.blocks):
            following = f"{path}.{layer + 1}."
        with self.streamed.lent(block, f"{path}.{layer}.", following):
            yield


def _refuse_missing_layers(files: Files, layers: Sequence[int], n_layers: int) -> None:
    if not layers or not all(0 <= layer < n_layers for layer in layers):
        requested = ", ".join(map(str, layers))
        raise SourceError(f"{files.name} has layers 0-{n_layers - 1}, not {requested}")


def _path_of(part: nn.Module, model: nn.Module) -> str:
    paths = (name for name, module in model.named_modules() if module is part)
    return str(next(paths))


def _fill(weights: Weights, exclude: str | None) -> None:
    """Read all weights but those under the path `exclude`, which are read when they are needed."""
    if exclude is None:
        weights.fill(weights.names)
        weights.close()
    else:
        weights.fill([name for name in weights.names if not name.startswith(exclude)])


def _model_without_weights(config: Any, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoModel

    build: Callable[..., nn.Module] = AutoModel.from_config
    try:
        with torch.device("meta"):
            model = build(config, dtype=dtype)
    except Exception as error:  # models check their configs by exceptions of their own
        raise unsupported(config, first_line(error)) from error
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise unsupported(config, "it takes no position_ids, so it is no transformer")
    return model.eval().requires_grad_(False)


def _cut(model: nn.Module, config: Any, *, last: int) -> nn.ModuleList:
    """Remove the blocks above `last` and the final norm; returns the remaining blocks.

    The whole model is built first and its config stays as it is: what a block is may depend on how
    many there are.
    """
    n_layers = config.num_hidden_layers
    candidates = [(path, each) for path, each in _outer_lists(model) if len(each) == n_layers]
    if len(candidates) != 1:
        raise unsupported(
            config, f"{len(candidates)} lists of {n_layers} blocks where one was expected"
        )
    [(path, blocks)] = candidates
    decoder = model.get_submodule(path.rpartition(".")[0])
    norms = [name for name in FINAL_NORMS if isinstance(getattr(decoder, name, None), nn.Module)]
    if len(norms) != 1:
        raise unsupported(
            config, f"{len(norms)} final norms beside its blocks where one was expected"
        )
    del blocks[last + 1 :]
    setattr(decoder, norms[0], nn.Identity())
    return blocks


def _outer_lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Lists of modules that are not within another list."""
    for path, module in model.named_modules():
        is_inner = any(part.isdigit() for part in path.split("."))
        if isinstance(module, nn.ModuleList) and not is_inner:
            yield path, module


def _embedding(model: Any) -> nn.Module:
    embedding: nn.Module = model.get_input_embeddings()
    return embedding


def read_tokenizer(files: Files) -> tuple[Any, list[str]]:
    """The tokenizer and the names of its files; raises SourceError if it cannot be read."""
    from transformers import AutoTokenizer

    present = [name for name in TOKENIZER_FILES if name in files.names()]
    if not present:
        raise SourceError(f"{files.name} has no tokenizer files (tokenizer.json, …)")
    paths = [files.path(name) for name in present]
    folder = paths[0].parent
    try:
        return AutoTokenizer.from_pretrained(folder), present
    except Exception as error:  # tokenizers raises bare Exception for damaged files
        raise SourceError(
            f"the tokenizer in {folder} cannot be read: {first_line(error)}"
        ) from error


def _spec(files: Files, config: Any, names: Sequence[str]) -> ModelSpec:
    return ModelSpec(
        repo=files.name,
        revision=files.revision,
        n_layers=int(config.num_hidden_layers),
        d_model=int(config.hidden_size),
        fingerprint=_digest(files, ["config.json", *names]),
    )


def _digest(files: Files, names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path in sorted(map(files.path, names), key=lambda path: path.name):
        digest.update(f"{path.name}={fingerprint(path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"
