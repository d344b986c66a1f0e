"""A model's files: their names, the index, and the headers of safetensors files."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from saescope.errors import SourceError
from saescope.sources.file_names import check_inner_name
from saescope.sources.files import GGUF, Files, HubFiles, call_hub
from saescope.sources.mistaken import why_no_model, why_no_weights
from saescope.sources.regular_files import open_regular, parse_json, read_json

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
_LARGEST_HEADER = 100 * 10**6  # the limit of the safetensors library
_MALFORMED = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as a safetensors header describes it."""

    dtype: str
    values: int
    bytes: int


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
            index = read_json(path)
            shard_of = {str(name): str(shard) for name, shard in index["weight_map"].items()}
            total = (index.get("metadata") or {}).get("total_size")
        except _MALFORMED as error:
            raise SourceError(f"{path} is not a safetensors index: {error}") from error
        for shard in set(shard_of.values()):
            if "/" in check_inner_name(shard, str(path)):
                raise SourceError(f"{path} names a file in another folder: {shard!r:.200}")
        return WeightIndex(shard_of, total if isinstance(total, int) else None)
    names = files.names()
    reason = why_no_model(names) or why_no_weights(names)
    if files.chosen is not None:
        reason = why_no_weights([files.chosen])
    missing = f"has no {SINGLE} and no {INDEX}: only safetensors weights are read"
    raise SourceError(f"{files.name} {reason or missing}")


def read_header(files: Files, shard: str) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file; only its first bytes are fetched if it is not here."""
    if isinstance(files, HubFiles) and not files.entry(shard).have:
        return _fetch_header(files, shard)
    path = files.path(shard)
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LARGEST_HEADER, path.stat().st_size):
                raise ValueError("it has no header")
            header = parse_json(file.read(length))
        header.pop("__metadata__", None)
        return {name: _tensor_info(fields) for name, fields in header.items()}
    except _MALFORMED as error:
        raise SourceError(f"{path} is damaged or truncated: {error}") from error


def _tensor_info(fields: Any) -> TensorInfo:
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
