"""What a job needs of a model's checkpoint, from config, index and headers. Needs no torch."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from saescope.errors import SourceError
from saescope.sources.files import GGUF, Files, HubFiles, call_hub

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
_PROJECTORS = "mmproj"  # GGUF files of image towers
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
)
# What decoders call their base model, embedding, learned positions and blocks.
PREFIXES = ("model.", "", "transformer.", "model.language_model.", "language_model.model.")
_EMBEDDINGS, _POSITIONS, _BLOCKS = ("embed_tokens", "wte"), ("wpe",), ("layers", "h")
_LARGEST_HEADER = 100 * 10**6  # the limit of the safetensors library
_PARALLEL_HEADERS = 8
_MALFORMED = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as a safetensors header describes it."""

    dtype: str
    values: int
    bytes: int


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes in a config.json: `mlp` and `attention` are widths, `experts_used` is a share."""

    n_layers: int
    d_model: int
    mlp: int
    attention: int
    dtype: str
    experts_used: float


@dataclass(frozen=True)
class Checkpoint:
    """A model's files and config, the shard of each tensor, and the total bytes if known."""

    files: Files
    config: DecoderConfig
    shard_of: Mapping[str, str]
    total_bytes: int | None

    def needed_tensors(self, last: int) -> dict[str, int | None]:
        """Tensors that the output of layer `last` depends on: their block, None for embeddings."""
        prefix = self._prefix()
        block_of: dict[str, int | None] = {}
        for name in self.shard_of:
            if not name.startswith(prefix):
                continue
            module, _, rest = name.removeprefix(prefix).partition(".")
            block = rest.partition(".")[0]
            if module in _EMBEDDINGS or module in _POSITIONS:
                block_of[name] = None
            elif module in _BLOCKS and block.isdigit() and int(block) <= last:
                block_of[name] = int(block)
        return block_of

    def _prefix(self) -> str:
        for prefix in PREFIXES:
            for embedding in _EMBEDDINGS:
                if f"{prefix}{embedding}.weight" in self.shard_of:
                    return prefix
        raise SourceError(
            f"{self.files.name} has no tensor model.embed_tokens.weight: "
            "it is not a decoder that saescope supports"
        )

    def file_names(self, last: int) -> list[str]:
        """Files to fetch for the output of layer `last`: config, tokenizer, index and shards."""
        optional = (*TOKENIZER_FILES, INDEX)
        existing = self.files.names()
        shards = {self.shard_of[name] for name in self.needed_tensors(last)}
        return [CONFIG, *(name for name in optional if name in existing), *sorted(shards)]

    def tensor_infos(self, last: int) -> dict[str, TensorInfo]:
        """Sizes of the needed tensors, from the headers of their shards."""
        names_in: defaultdict[str, list[str]] = defaultdict(list)
        for name in self.needed_tensors(last):
            names_in[self.shard_of[name]].append(name)
        with ThreadPoolExecutor(_PARALLEL_HEADERS) as pool:
            headers = list(pool.map(lambda shard: read_header(self.files, shard), names_in))
        infos = {}
        for (shard, names), header in zip(names_in.items(), headers, strict=True):
            for name in names:
                if name not in header:
                    raise SourceError(
                        f"{self.files.name}: {shard} has no tensor {name}, but the index says so"
                    )
                infos[name] = header[name]
        return infos


def open_checkpoint(files: Files) -> Checkpoint:
    """Read config and index, or the header of a single file; raises SourceError if damaged."""
    config = read_decoder_config(files)
    index = read_index(files)
    return Checkpoint(files, config, index.shard_of, index.total_bytes)


def gguf_name(files: Files) -> str | None:
    """The GGUF file that holds the model: the one the user named, or the only one of its folder.

    None for a checkpoint of safetensors. Raises SourceError if several files could be meant.
    """
    if files.chosen is not None:
        return files.chosen
    names = files.names()
    if SINGLE in names or INDEX in names:
        return None
    found = [name for name in names if name.endswith(GGUF) and not name.startswith(_PROJECTORS)]
    if len(found) > 1:
        raise SourceError(
            f"{files.name} holds {len(found)} GGUF files: name one, such as "
            f"{files.name}/{min(found)}"
        )
    return found[0] if found else None


class WeightIndex(NamedTuple):
    """The safetensors file of each tensor, and the bytes of all tensors if known."""

    shard_of: dict[str, str]
    total_bytes: int | None


def read_index(files: Files) -> WeightIndex:
    """Which file holds which tensor, from the index or the header of a single file.

    Raises SourceError for a damaged index, and for a checkpoint without safetensors weights.
    """
    if SINGLE in files.names():  # before an index, as transformers does: one may be left over
        header = read_header(files, SINGLE)
        total_bytes = sum(tensor.bytes for tensor in header.values())
        return WeightIndex(dict.fromkeys(header, SINGLE), total_bytes)
    if INDEX in files.names():
        path = files.path(INDEX)
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            shard_of = {str(name): str(shard) for name, shard in index["weight_map"].items()}
            total = index.get("metadata", {}).get("total_size")
        except _MALFORMED as error:
            raise SourceError(f"{path} is not a safetensors index: {error}") from error
        return WeightIndex(shard_of, int(total) if isinstance(total, int | float) else None)
    raise SourceError(
        f"{files.name} has no {SINGLE} and no {INDEX}: only safetensors weights are read"
    )


def read_decoder_config(files: Files) -> DecoderConfig:
    """The decoder's sizes, which a multimodal config holds in `text_config`."""
    path = files.path(CONFIG)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return _decoder_config(config, config.get("text_config", config))
    except _MALFORMED as error:
        raise SourceError(f"{path} does not describe a decoder: {error}") from error


def _decoder_config(config: Mapping[str, Any], text: Mapping[str, Any]) -> DecoderConfig:
    d_model = _size(text, "hidden_size")
    heads = _size(text, "num_attention_heads", 1)
    kv_heads = _size(text, "num_key_value_heads", heads)
    head_dim = _size(text, "head_dim", d_model // max(1, heads))
    mlp = _size(text, "intermediate_size", 4 * d_model)
    experts = _size(text, "num_experts", 0)
    used = _size(text, "num_experts_per_tok", 0)
    experts_used = 1.0
    if experts:
        mlp = used * _size(text, "moe_intermediate_size", mlp)
        experts_used = used / experts
    return DecoderConfig(
        n_layers=_size(text, "num_hidden_layers"),
        d_model=d_model,
        mlp=mlp,
        attention=head_dim * (heads + 2 * kv_heads),
        dtype=_dtype(text) or _dtype(config),
        experts_used=experts_used,
    )


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"its {key} is {value!r}")
    return value


def _dtype(config: Mapping[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "")


def read_header(files: Files, shard: str) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file; only its first bytes are fetched if it is not here."""
    if isinstance(files, HubFiles) and not files.entry(shard).have:
        return _fetch_header(files, shard)
    path = files.path(shard)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LARGEST_HEADER, path.stat().st_size):
                raise ValueError("it has no header")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {name: _tensor_info(fields) for name, fields in header.items()}
    except _MALFORMED as error:
        raise SourceError(f"{path} is damaged or truncated: {error}") from error


def _tensor_info(fields: Mapping[str, Any]) -> TensorInfo:
    start, end = fields["data_offsets"]
    return TensorInfo(str(fields["dtype"]), prod(fields["shape"]), end - start)


def _fetch_header(files: HubFiles, shard: str) -> dict[str, TensorInfo]:
    from huggingface_hub import HfApi

    read: Callable[..., Any] = HfApi().parse_safetensors_file_metadata
    header = call_hub(files, lambda: read(files.repo, shard, revision=files.revision))
    infos = {}
    for name, fields in header.tensors.items():
        start, end = fields.data_offsets
        infos[name] = TensorInfo(fields.dtype, fields.parameter_count, end - start)
    return infos
