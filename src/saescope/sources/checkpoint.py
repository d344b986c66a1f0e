"""What of a model's checkpoint a job needs, read from its config, index and headers: no weights, no torch."""

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

from saescope.errors import SourceError
from saescope.sources.files import Files, HubFiles, call_hub

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
PREFIXES = ("model.", "", "transformer.", "model.language_model.", "language_model.model.")
_LARGEST_HEADER = 100 * 10**6  # as the safetensors library itself
_AT_ONCE = 8

# What decoders call their embedding, their learned positions and their blocks.
_EMBEDDINGS, _POSITIONS, _BLOCKS = ("embed_tokens", "wte"), ("wpe",), ("layers", "h")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as a header describes it."""

    dtype: str
    values: int
    bytes: int


@dataclass(frozen=True)
class DecoderConfig:
    """What a config.json says of the decoder."""

    n_layers: int
    d_model: int
    mlp: int
    attention: int
    dtype: str
    experts_used: float


@dataclass(frozen=True)
class Checkpoint:
    """A model's files, its config, which shard holds each tensor, and the bytes of all tensors if the index says so."""

    files: Files
    config: DecoderConfig
    shard_of: Mapping[str, str]
    total_bytes: int | None

    def needed(self, last: int) -> dict[str, int | None]:
        """Tensors that the output of layer `last` depends on: their block, None for the embedding."""
        embeddings = [f"{p}{name}.weight" for p in PREFIXES for name in _EMBEDDINGS]
        first = next((name for name in embeddings if name in self.shard_of), None)
        if first is None:
            raise SourceError(
                f"{self.files.name} has no tensor model.embed_tokens.weight: not a decoder saescope knows"
            )
        prefix = first.removesuffix(".weight").removesuffix(
            first.removesuffix(".weight").rpartition(".")[2]
        )
        found: dict[str, int | None] = {}
        for name in self.shard_of:
            parts = name.removeprefix(prefix).split(".") if name.startswith(prefix) else [""]
            if parts[0] in (*_EMBEDDINGS, *_POSITIONS):
                found[name] = None
            elif parts[0] in _BLOCKS and parts[1].isdigit() and int(parts[1]) <= last:
                found[name] = int(parts[1])
        return found

    def file_names(self, last: int) -> list[str]:
        """Files to fetch for the output of layer `last`: config, tokenizer, index and shards."""
        names = self.files.names()
        shards = sorted({self.shard_of[name] for name in self.needed(last)})
        return [
            CONFIG,
            *(n for n in TOKENIZER_FILES if n in names),
            *(n for n in (INDEX,) if n in names),
            *shards,
        ]

    def tensors(self, last: int) -> dict[str, TensorInfo]:
        """JobSizes of the needed tensors, from the headers of their shards."""
        shards: dict[str, list[str]] = {}
        for name in self.needed(last):
            shards.setdefault(self.shard_of[name], []).append(name)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            headers = list(pool.map(lambda shard: read_header(self.files, shard), shards))
        found = {}
        for (shard, names), header in zip(shards.items(), headers, strict=True):
            for name in names:
                if name not in header:
                    raise SourceError(
                        f"{self.files.name}: {shard} has no tensor {name}, as its index says"
                    )
                found[name] = header[name]
        return found


def open_checkpoint(files: Files) -> Checkpoint:
    """Read config and index (or the header of a single file); raises SourceError for what is missing or damaged."""
    return Checkpoint(files, read_decoder_config(files), *read_index(files))


def read_index(files: Files) -> tuple[dict[str, str], int | None]:
    """Which safetensors file holds each tensor, and the bytes of all; raises SourceError where that cannot be told."""
    if INDEX in files.names():
        path = files.path(INDEX)
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            shard_of = {str(name): str(shard) for name, shard in index["weight_map"].items()}
            total = index.get("metadata", {}).get("total_size")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError(f"{path} is not a safetensors index: {error}") from error
        return shard_of, int(total) if isinstance(total, int | float) else None
    if SINGLE in files.names():
        header = read_header(files, SINGLE)
        return dict.fromkeys(header, SINGLE), sum(tensor.bytes for tensor in header.values())
    raise SourceError(
        f"{files.name} has no {SINGLE} and no {INDEX}: only safetensors weights are read"
    )


def read_decoder_config(files: Files) -> DecoderConfig:
    """The decoder's sizes; those of a multimodal model stand in its text_config."""
    path = files.path(CONFIG)
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        text = whole.get("text_config", whole)
        d_model, heads = _get(text, "hidden_size"), _get(text, "num_attention_heads", 1)
        head_dim = _get(text, "head_dim", d_model // max(1, heads))
        n_experts, used = _get(text, "num_experts", 0), _get(text, "num_experts_per_tok", 0)
        dense = _get(text, "intermediate_size", 4 * d_model)
        return DecoderConfig(
            n_layers=_get(text, "num_hidden_layers"),
            d_model=d_model,
            mlp=used * _get(text, "moe_intermediate_size", dense) if n_experts else dense,
            attention=head_dim * (heads + 2 * _get(text, "num_key_value_heads", heads)),
            dtype=next(
                (
                    str(c[key])
                    for c in (text, whole)
                    for key in ("dtype", "torch_dtype")
                    if c.get(key)
                ),
                "",
            ),
            experts_used=used / n_experts if n_experts else 1.0,
        )
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise SourceError(f"{path} does not describe a decoder: {error}") from error


def _get(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"its {key} is {value!r}")
    return value


def read_header(files: Files, shard: str) -> dict[str, TensorInfo]:
    """What tensors a safetensors file holds; of one that is not here, only its first bytes are fetched."""
    entry = files.entry(shard)
    if isinstance(files, HubFiles) and not entry.have:
        return dict(_fetched_header(files, shard))
    path = files.path(shard)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LARGEST_HEADER, path.stat().st_size):
                raise ValueError("it has no header")
            header = json.loads(file.read(length))
        return {
            name: _tensor_info(name, about)
            for name, about in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{path} is damaged or truncated: {error}") from error


def _tensor_info(name: str, about: Mapping[str, Any]) -> TensorInfo:
    start, end = about["data_offsets"]
    return TensorInfo(str(about["dtype"]), prod(about["shape"]), end - start)


def _fetched_header(files: HubFiles, shard: str) -> Iterator[tuple[str, TensorInfo]]:
    from huggingface_hub import HfApi

    read: Callable[..., Any] = HfApi().parse_safetensors_file_metadata
    found = call_hub(files, lambda: read(files.repo, shard, revision=files.revision))
    for name, about in found.tensors.items():
        start, end = about.data_offsets
        yield name, TensorInfo(about.dtype, about.parameter_count, end - start)
