"""Sizes that a model's config declares, checked before a model of that size is built.

A model without weights takes memory too: for tables of rotary embeddings, and for its modules.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saescope.errors import SourceError
from saescope.sources.file_parts import gguf_numbers
from saescope.sources.regular_files import UnreadableFileError, read_json

_MOST_LAYERS = 2000
_LARGEST = 2**24
_DEEPEST = 20
_LAYERS = re.compile(r"layers?$|^n_layer|blocks?$|block_count|depths?$")
_SIZES = re.compile(
    r"hidden|inter|inner|ffn|ff_|forward|emb|dim|head|vocab|width|size|rank|state|conv|kernel|"
    r"channel|expert|group|d_model|d_ff|d_kv|key_length|value_length|latent|num_|n_"
)
# What may be large without taking memory.
_FREE = re.compile(
    r"position|context|ctx|token|theta|base|freq|(^|_)ids?$|window|chunk|max_length|seq|steps|"
    r"scale|factor|param|bytes|bits|samples|seed|image|pixels"
)


def check_config_sizes(path: Path, config: Any) -> None:
    """Raise SourceError if a config states more layers or larger sizes than any model has."""
    for name, value in _numbers(config):
        if value <= 0:
            continue
        if _LAYERS.search(name) and value > _MOST_LAYERS:
            raise _too_large(path, name, value, _MOST_LAYERS)
        if _SIZES.search(name) and not _FREE.search(name) and value > _LARGEST:
            raise _too_large(path, name, value, _LARGEST)


def check_config_file(path: Path) -> None:
    """Raise SourceError if a config.json is no JSON object, or states impossible sizes."""
    try:
        config = read_json(path)
    except UnreadableFileError as error:
        raise SourceError(f"{path} is no model config: {error}") from error
    except (OSError, ValueError) as error:
        kind = "generation config" if path.name.startswith("generation") else "model config"
        raise SourceError(
            f"{path} is no {kind}: it is not JSON: {error}; correct it or download it again"
        ) from error
    if not isinstance(config, dict):
        raise SourceError(f"{path} is no model config: it holds a {type(config).__name__}")
    check_config_sizes(path, config)


def check_gguf_file(path: Path) -> None:
    """Raise SourceError if a GGUF file is damaged or states impossible sizes."""
    try:
        numbers = gguf_numbers(path)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} is a damaged or truncated GGUF file: {error}") from error
    check_config_sizes(path, numbers)


def _numbers(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, int | float]]:
    """Yield the numbers of a config with their names; items of a list have the list's name."""
    if depth > _DEEPEST:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, str(key).lower(), depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, name, depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _too_large(path: Path, name: str, value: int | float, limit: int) -> SourceError:
    shown = f"{value:.3g}" if isinstance(value, float) or value < 10**300 else "a huge number"
    return SourceError(f"{path} says {name} is {shown}: the largest that is read is {limit:,}")
