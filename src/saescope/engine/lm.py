"""A causal LM from transformers, cut after the last layer needed.

Later layers, the final norm and the lm_head are neither fetched nor read until something needs them
(`LM.whole`). The ModuleList of blocks is found by structure, not by architecture. Rows of several
prompts and shared prefixes are used only for the architectures that were tested with them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from saescope.engine.config import max_length, read_config
from saescope.engine.contents import Contents
from saescope.engine.devices import Device, DType, choose_device, choose_dtype
from saescope.engine.pages import Pages, mapped_pages, release_pages
from saescope.engine.stock import blocks_of, final_norm, path_of
from saescope.engine.weights import Weights
from saescope.engine.whole import load_whole
from saescope.errors import SourceError, whole_reason
from saescope.sources.catalog import ModelSpec
from saescope.sources.checkpoint import CONFIG, INDEX, SINGLE, TOKENIZER_FILES, gguf_name
from saescope.sources.custom_code import custom_code
from saescope.sources.files import Files, open_files
from saescope.sources.machine import show_bytes
from saescope.sources.mistaken import missing_packages
from saescope.sources.stored_files import StoredFile, digest_of, stored_files, text_files

# Files that decide what a whole model writes, beside its weights.
_GENERATION_FILES = ("generation_config.json",)
_MOST_TOKENIZER_BYTES = 10**8  # the largest have 40 MB
# Architectures for which packed rows and shared prefixes were tested: attention does not cross
# prompts.
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
    """Load a model up to the highest of `layers` (default: all layers).

    `ref` is a folder or a hub id (`owner/name@revision`). With `dtype="auto"`, bfloat16 checkpoints
    run in bfloat16 and all others in float32. If `streamed`, each forward pass reads one block at a
    time. A streamed model cannot generate. Warns (CheckpointWarning) of tensors that
    the config does not know. Raises SourceError for anything missing, damaged or unsupported.

    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", layers=[2])
    >>> len(lm.blocks), lm.spec.n_layers, lm.spec.d_model
    (3, 6, 192)
    """
    files = open_files(str(ref), offline=offline)
    config = read_config(files)
    last = _last_layer(files, layers, config.text.num_hidden_layers)
    torch_device = choose_device(device)
    contents = Contents.open(files, choose_dtype(dtype, config.text), config)
    lm = _load(contents, last, torch_device, streamed=streamed)
    contents.warn()  # only after loading, so that a refused model prints only its error
    return lm


@final
@dataclass(frozen=True, repr=False)
class LM:
    """A causal LM truncated after the last requested layer, with its tokenizer and metadata.

    Weights that are stored in `dtype` are memory-mapped, and their pages are released after use. Do
    not modify weights in place: the changes would be lost.

    Attributes:
        model: The AutoModel, without its final norm and the blocks after the last requested layer.
            `decoder` is its submodule that runs the blocks.
        block_pages: Memory-mapped pages of each block's weights.
        embedding_pages: Memory-mapped pages of the embedding.
        packs_prompts: Whether one row may hold several prompts.
        shares_prefixes: Whether prompts may reuse the KV cache of a common prefix.
        max_length: Maximum prompt length in tokens.
        contents: Which stored tensor fills which parameter.
        streamed: Source of the block weights if streamed; None if all are loaded.
        files: The files that decide what the model computes, as far as it is loaded.
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
    contents: Contents
    streamed: Weights | None = None
    files: tuple[StoredFile, ...] = ()

    def __repr__(self) -> str:
        spec = self.spec
        loaded = f"{len(self.blocks)} of {spec.n_layers} layers, width {spec.d_model}"
        return f"LM({_ending(spec.repo, 48)!r}: {loaded}, {self.dtype}, {self.device})"

    @property
    def source(self) -> str:
        """Return the path or hub id that opens the same checkpoint again."""
        return self.contents.files.source

    @cached_property
    def whole(self) -> nn.Module:
        """The full transformers causal LM, sharing these blocks.

        Remaining weights are loaded on first access.
        """
        if self.streamed is not None:
            raise SourceError(
                f"{self.spec.repo} is streamed and cannot generate: load it with streamed=False"
            )
        return load_whole(self.contents, self.blocks, self.device)

    @cached_property
    def whole_fingerprint(self) -> str:
        """The fingerprint of all files that decide generated text, not only of the cut model's."""
        files = self.contents.files
        names = [file.name for file in self.files]
        optional = [name for name in _GENERATION_FILES if name in files.names()]
        shards = sorted(set(self.contents.shard_of.values()))
        return digest_of(stored_files(files, [*names, *optional, *shards]))

    @property
    def decoder(self) -> nn.Module:
        """Return the module whose forward pass runs the blocks."""
        path = path_of(self.blocks, self.model)
        return self.model.get_submodule(path.rpartition(".")[0])

    def generate(self, prompt: str | Sequence[Mapping[str, Any]], **settings: Any) -> str:
        """Return the model's continuation of a text or chat: `saescope.generate(lm, …)`.

        >>> import saescope as ss
        >>> ss.load_lm("saescope-tiny").generate("The cat", max_new_tokens=8)
        ' was the most enormous in'
        """
        import saescope

        return saescope.generate(self, prompt, **settings)

    @contextmanager
    def block_in_memory(
        self, layer: int, block: nn.Module, *, read_ahead: bool = True
    ) -> Iterator[None]:
        """Within the context, the block of `layer` has its weights; on exit they are released.

        Both `layer` and `block` are needed: `layer` says which weights to read, and `block` takes
        them, because `stream_blocks` puts placeholders into `lm.blocks`. A streamed model reads the
        weights from its files and, with `read_ahead`, starts to read the next block.
        """
        if self.streamed is None:
            try:
                yield
            finally:
                release_pages(self.block_pages[layer])
            return
        path = path_of(self.blocks, self.model)
        next_prefix = None
        if read_ahead and layer + 1 < len(self.blocks):
            next_prefix = f"{path}.{layer + 1}."
        with self.streamed.lent(block, f"{path}.{layer}.", next_prefix):
            yield


def _load(contents: Contents, last: int, device: torch.device, *, streamed: bool) -> LM:
    files, config, model = contents.files, contents.config.text, contents.text_decoder
    blocks = _cut(model, config, last=last)
    weights = Weights(contents, model, contents.decoder_path, device)
    _fill(weights, exclude=f"{path_of(blocks, model)}." if streamed else None)
    tokenizer, tokenizer_files = read_tokenizer(files)
    stored = stored_files(files, [*_files_beside_weights(files, tokenizer_files), *weights.shards])
    packs_prompts = config.model_type in _PACKING_ARCHITECTURES
    return LM(
        spec=_spec(files, config, stored),
        model=model,
        tokenizer=tokenizer,
        blocks=blocks,
        block_pages=tuple([] if streamed else mapped_pages(b.parameters()) for b in blocks),
        embedding_pages=mapped_pages(_embedding(model).parameters()),
        packs_prompts=packs_prompts,
        # A streamed model runs block by block and has no KV cache.
        shares_prefixes=packs_prompts and not streamed,
        max_length=max_length(config),
        vocab_size=int(config.vocab_size),
        dtype=contents.dtype,
        device=device,
        contents=contents,
        streamed=weights if streamed else None,
        files=stored,
    )


def _last_layer(files: Files, layers: Sequence[int] | None, n_layers: int) -> int:
    if layers is None:
        return n_layers - 1
    if not layers or not all(0 <= layer < n_layers for layer in layers):
        requested = ", ".join(map(str, layers))
        raise SourceError(f"{files.name} has layers 0-{n_layers - 1}, not {requested}")
    return max(layers)


def _fill(weights: Weights, exclude: str | None) -> None:
    """Load all weights except those under `exclude`, which are read whenever their block runs."""
    if exclude is None:
        weights.fill(weights.names)
        weights.close()
    else:
        weights.fill([name for name in weights.names if not name.startswith(exclude)])


def _cut(model: nn.Module, config: Any, *, last: int) -> nn.ModuleList:
    """Remove the blocks after `last` and the final norm; return the remaining blocks.

    The whole model is built first and the config is not changed, because a block's type may depend
    on num_hidden_layers.
    """
    _, blocks = blocks_of(model, config)
    name = final_norm(model, config)
    del blocks[last + 1 :]
    # A norm without weights costs nothing to keep: some models also use it before their blocks.
    has_weights = next(model.get_submodule(name).parameters(), None) is not None
    if has_weights:
        setattr(model, name, SkippedNorm())
    return blocks


@final
class SkippedNorm(nn.Identity):
    """Stands for a final norm that is not loaded.

    A use before the last block would change residuals, so uses are counted here, and refused
    by `check_hook_points`.
    """

    uses = 0

    def forward(self, input: Tensor) -> Tensor:
        """Return the input."""
        self.uses += 1
        return input


def _embedding(model: Any) -> nn.Module:
    embedding: nn.Module = model.get_input_embeddings()
    return embedding


def read_tokenizer(files: Files) -> tuple[Any, list[str]]:
    """Return the tokenizer and the names of its files; raise SourceError if it cannot be read."""
    from transformers import AutoTokenizer

    gguf = gguf_name(files)
    present = [name for name in TOKENIZER_FILES if name in files.names()]
    if gguf is not None:
        present = [gguf]
    if not present:
        raise SourceError(
            f"{files.name} has no tokenizer files (tokenizer.json, …): copy them from the model "
            "it was made from"
        )
    paths = [files.path(name) for name in present]
    source: dict[str, Any] = {"gguf_file": paths[0].name} if gguf is not None else {}
    folder = paths[0].parent
    _refuse_large_files(paths, _MOST_TOKENIZER_BYTES if gguf is None else None)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **source), present
    except Exception as error:  # tokenizers raises bare Exception for damaged files
        raise SourceError(
            f"the tokenizer in {folder} cannot be read: "
            f"{custom_code(files) or missing_packages(str(error)) or whole_reason(error)}"
        ) from error


def _refuse_large_files(paths: Sequence[Path], limit: int | None) -> None:
    for path in paths:
        size = path.stat().st_size
        if limit is not None and size > limit:
            raise SourceError(
                f"{path} has {show_bytes(size)}: more than {show_bytes(limit)} is no tokenizer"
            )


def _files_beside_weights(files: Files, tokenizer_files: Sequence[str]) -> list[str]:
    """Return the names of the files that decide the config, the token ids and the shards."""
    gguf = gguf_name(files)
    if gguf is not None:
        return [gguf]
    uses_index = SINGLE not in files.names() and INDEX in files.names()
    index = [INDEX] if uses_index else []
    return [CONFIG, *index, *tokenizer_files, *text_files(files)]


def _spec(files: Files, config: Any, stored: Sequence[StoredFile]) -> ModelSpec:
    return ModelSpec(
        repo=files.name,
        revision=files.revision,
        n_layers=int(config.num_hidden_layers),
        d_model=int(config.hidden_size),
        fingerprint=digest_of(stored),
    )


def _ending(path: str, length: int) -> str:
    """Return the end of a long path or hub id, which tells more than its beginning."""
    return path if len(path) <= length else f"…{path[1 - length :]}"
