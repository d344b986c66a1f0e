"""A causal LM from transformers, cut after the last layer needed.

The layers above, the final norm and the lm_head are never fetched or read. This file knows configs and modules, by
what they have and not by their names; it does not know tensors, SAEs, prompts or hooks.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import nn

from saescope.engine.pages import Pages, give_back, mapped_pages
from saescope.engine.weights import Weights
from saescope.errors import SourceError, first_line
from saescope.sources.catalog import ModelSpec
from saescope.sources.checkpoint import TOKENIZER_FILES
from saescope.sources.files import Files, fingerprint, open_files
from saescope.sources.prompts import Message, Prompt

DType = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda", "mps"]

# Architectures that keep attention within each of several prompts in one row (a test compares them with single ones).
_PACKING = (
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
)
FINAL_NORMS = ("norm", "ln_f", "norm_f", "final_norm", "final_layernorm", "final_layer_norm")


@final
@dataclass(frozen=True)
class LM:
    """A decoder cut after its last needed layer, its tokenizer, and what it is.

    `mapped` are the pages of each block's weights that lie in files, `looked_up` those of the embedding. They are given
    back after use, so weights must not be changed in place: changes would be lost with the pages. `packs` says that
    several prompts may share a row, `shares` that they may share the keys and values of what they all begin with.
    `source` is what opens the same checkpoint again. Blocks of a `streamed` model have weights only in their turn.
    """

    spec: ModelSpec
    model: nn.Module
    tokenizer: Any
    blocks: nn.ModuleList
    mapped: tuple[list[Pages], ...]
    looked_up: list[Pages]
    packs: bool
    shares: bool
    max_length: int
    vocab_size: int
    dtype: torch.dtype
    device: torch.device
    source: str
    streamed: Weights | None = None

    @cached_property
    def whole(self) -> nn.Module:
        """transformers' own causal LM around these blocks; what they lack is read when this is first asked for."""
        from saescope.engine.whole import load_whole

        if self.streamed is not None:
            raise SourceError(
                f"{self.spec.repo} is streamed and cannot generate: load it without --memory"
            )
        return load_whole(self)

    def generate(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        thinking: bool | None = None,
    ) -> str:
        """What the model goes on with after a text, or answers to the turns of a chat (`role`, `content`)."""
        from saescope.engine.generate import generate

        if isinstance(prompt, str):
            asked = Prompt("prompt", "prompts", text=prompt)
        else:
            asked = Prompt(
                "prompt",
                "prompts",
                messages=tuple(Message(t["role"], t["content"]) for t in prompt),
            )
        [written] = generate(
            self,
            [asked],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            thinking=thinking,
        )
        return written.text

    @property
    def decoder(self) -> nn.Module:
        """The module whose forward pass runs the blocks."""
        path = next(name for name, module in self.model.named_modules() if module is self.blocks)
        return self.model.get_submodule(path.rpartition(".")[0])

    @contextmanager
    def turn(self, layer: int, block: nn.Module, *, alone: bool = False) -> Iterator[None]:
        """The turn of `layer`'s block: its weights are at hand, and if it is streamed the next one's are being read.

        Not if it is `alone`.
        """
        if self.streamed is None:
            try:
                yield
            finally:
                give_back(self.mapped[layer])
            return
        following = str(layer + 1) if layer + 1 < len(self.blocks) and not alone else None
        path = next(name for name, module in self.model.named_modules() if module is self.blocks)
        with self.streamed.lent(block, f"{path}.{layer}.", following and f"{path}.{following}."):
            yield


def load_lm(
    ref: str | Path,
    layers: Sequence[int],
    *,
    dtype: DType = "auto",
    device: Device = "auto",
    offline: bool = False,
    streamed: bool = False,
) -> LM:
    """Load the part of a model that computes the outputs of `layers`; `streamed`, one block at a time when it is run.

    `ref` is a folder or a hub id (`owner/name@revision`). Raises SourceError for anything missing, damaged or unknown.
    """
    files = open_files(str(ref), offline=offline)
    config = read_config(files)
    n_layers = int(config.num_hidden_layers)
    if not layers or not all(0 <= layer < n_layers for layer in layers):
        raise SourceError(
            f"{files.name} has layers 0-{n_layers - 1}, not {', '.join(map(str, layers))}"
        )
    on, kind = choose_device(device), _choose_dtype(dtype, config)
    model = _skeleton(config, kind)
    blocks = _cut(model, config, last=max(layers))
    weights = Weights.open(model, files, kind, on)
    path = next(name for name, module in model.named_modules() if module is blocks)
    weights.fill([name for name in weights.names if not (streamed and name.startswith(f"{path}."))])
    if not streamed:
        weights.close()
    tokenizer, tokenizer_files = read_tokenizer(files)
    return LM(
        spec=ModelSpec(
            repo=files.name,
            revision=files.revision,
            n_layers=n_layers,
            d_model=int(config.hidden_size),
            fingerprint=_digest(
                [files.path(name) for name in ("config.json", *tokenizer_files, *weights.shards)]
            ),
        ),
        model=model,
        tokenizer=tokenizer,
        blocks=blocks,
        mapped=tuple([] if streamed else mapped_pages(block.parameters()) for block in blocks),
        looked_up=mapped_pages(_embedding(model).parameters()),
        packs=config.model_type in _PACKING,
        # A streamed model sees one block at a time and keeps no keys and values.
        shares=config.model_type in _PACKING and not streamed,
        max_length=_max_length(config),
        vocab_size=int(config.vocab_size),
        dtype=kind,
        device=on,
        source=files.source,
        streamed=weights if streamed else None,
    )


def choose_device(device: Device) -> torch.device:
    """The device asked for, or the best one here; raises SourceError if it is not available."""
    have = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device == "auto":
        return torch.device("cuda" if have["cuda"] else "mps" if have["mps"] else "cpu")
    if not have[device]:
        raise SourceError(f"device {device} is not available here: use --device cpu or auto")
    return torch.device(device)


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
        raise _unsupported(whole, "it is an encoder and a decoder, not a decoder alone")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _unsupported(config, "it is no causal language model")
    both_ways = getattr(config, "use_bidirectional_attention", None) in (True, "all")
    if both_ways or not getattr(config, "is_causal", True):
        raise _unsupported(config, "its attention looks to the right")
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


def _unsupported(config: Any, why: str) -> SourceError:
    return SourceError(f"architecture {config.model_type!r} is not supported: {why}")


def _choose_dtype(dtype: DType, config: Any) -> torch.dtype:
    if dtype != "auto":
        return torch.float32 if dtype == "float32" else torch.bfloat16
    stored = getattr(config, "dtype", None)
    # float16 ends at 65,504, below the norms of attention sinks, so such checkpoints are computed in float32.
    return torch.bfloat16 if stored == torch.bfloat16 else torch.float32


def _max_length(config: Any) -> int:
    """How long a prompt may be."""
    limit = int(getattr(config, "max_position_embeddings", None) or 2**31)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        # Beyond this the whole batch gets other frequencies: a prompt's features would depend on its neighbours.
        limit = min(limit, int(rope.get("original_max_position_embeddings") or limit))
    return limit


def _skeleton(config: Any, dtype: torch.dtype) -> nn.Module:
    """The whole decoder without memory."""
    from transformers import AutoModel

    build: Callable[..., nn.Module] = AutoModel.from_config
    try:
        with torch.device("meta"):
            model = build(config, dtype=dtype)
    except Exception as error:  # models check their configs by exceptions of their own
        raise _unsupported(config, first_line(error)) from error
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise _unsupported(config, "it takes no position_ids, so it is no transformer")
    return model.eval().requires_grad_(False)


def _cut(model: nn.Module, config: Any, *, last: int) -> nn.ModuleList:
    """Take out the blocks above `last` and the final norm; returns the blocks.

    The whole model is built first, and its config left as it is: what a block is may depend on how many there are.
    """
    found = [
        (path, blocks) for path, blocks in _lists(model) if len(blocks) == config.num_hidden_layers
    ]
    if len(found) != 1:
        raise _unsupported(
            config,
            f"{len(found)} lists of {config.num_hidden_layers} blocks where one was expected",
        )
    path, blocks = found[0]
    decoder = model.get_submodule(path.rpartition(".")[0])
    norms = [name for name in FINAL_NORMS if isinstance(getattr(decoder, name, None), nn.Module)]
    if len(norms) != 1:
        raise _unsupported(
            config, f"{len(norms)} final norms beside its blocks where one was expected"
        )
    del blocks[last + 1 :]
    setattr(decoder, norms[0], nn.Identity())
    return blocks


def _embedding(model: Any) -> nn.Module:
    embedding: nn.Module = model.get_input_embeddings()
    return embedding


def _lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Lists of modules that are not within another."""
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(
            part.isdigit() for part in path.split(".")
        ):
            yield path, module


def read_tokenizer(files: Files) -> tuple[Any, list[str]]:
    """The tokenizer and the files it is made of; raises SourceError where it has none that can be read."""
    from transformers import AutoTokenizer

    present = [name for name in TOKENIZER_FILES if name in files.names()]
    if not present:
        raise SourceError(f"{files.name} has no tokenizer files (tokenizer.json, …)")
    paths = [files.path(name) for name in present]
    try:
        return AutoTokenizer.from_pretrained(paths[0].parent), present
    except Exception as error:  # tokenizers raises bare Exception for damaged files
        raise SourceError(
            f"the tokenizer in {paths[0].parent} cannot be read: {first_line(error)}"
        ) from error


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        digest.update(f"{path.name}={fingerprint(path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"
