"""Hook points: which layer's output an SAE reads, by the name or path that its makers give it."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from saescope.sources.catalog import Format, layer_of


class HookPoint(NamedTuple):
    """The layer whose output an SAE reads, if known; `other` names any other place it reads."""

    layer: int | None = None
    other: str | None = None


UNKNOWN = HookPoint()

_RESID = re.compile(r"blocks\.(?P<layer>\d{1,4})\.hook_resid_(?P<site>pre|post)")
_MODULE = re.compile(r"(?:[\w.]*\.)?(?:layers|h|blocks)\.(?P<layer>\d{1,4})(?:\.output)?")
_SPARSIFY_FOLDER = re.compile(r"(^|\.)(layers|h)[._]\d")
_DICTIONARY_FOLDER = re.compile(r"resid_post_layer_(?P<layer>\d{1,4})(?:_checkpoints)?")
_LLAMA_FOLDER = re.compile(r"Llama[\w.-]+-Base-L(?P<layer>\d{1,3})(?P<site>[A-Z]+)-\d+x")
_GEMMA_LAYER = re.compile(r"layer_(?P<layer>\d{1,4})(_.*)?")
_GEMMA_OTHER = re.compile(
    r"(?:gemma-scope-[\w.-]+-)?"
    r"(?P<site>att|mlp|(?:trans|cross)coders?(?:_all)?|(?:attn|mlp)_out(?:_all)?|clt)"
)


def parse_hook_point(name: object) -> HookPoint:
    """A hook point by the name of TransformerLens or of a module."""
    if not isinstance(name, str):
        return UNKNOWN
    if match := _RESID.fullmatch(name):
        layer = int(match["layer"])
        if match["site"] == "post":
            return HookPoint(layer)
        return input_of(layer, embedding=f"{name} (the embedding)")
    if match := _MODULE.fullmatch(name):
        return HookPoint(int(match["layer"]))
    return HookPoint(other=name)


def input_of(layer: int, embedding: str = "the embedding") -> HookPoint:
    """The output of the layer before this one, or of the embedding."""
    if layer == 0:
        return HookPoint(other=embedding)
    return HookPoint(layer - 1)


def hook_in_path(format: Format, path: Sequence[str]) -> HookPoint:
    """What the folders and the file name say, for formats whose paths can be relied on."""
    return _PATH_READERS[format](path)


def _qwen_scope(path: Sequence[str]) -> HookPoint:
    return HookPoint(layer_of(path[-1]))


def _saelens(path: Sequence[str]) -> HookPoint:
    for part in reversed(path):
        if part.startswith("blocks.") and "hook_resid" in part:
            return parse_hook_point(part)
    return UNKNOWN


def _sparsify(path: Sequence[str]) -> HookPoint:
    for part in reversed(path):
        if _SPARSIFY_FOLDER.search(part):
            return parse_hook_point(part.replace("layers_", "layers."))
    if "embed_tokens" in path:
        return HookPoint(other="embed_tokens")
    return UNKNOWN


def _dictionary_learning(path: Sequence[str]) -> HookPoint:
    return _layer_in(_DICTIONARY_FOLDER, reversed(path))


def _llama_scope(path: Sequence[str]) -> HookPoint:
    for part in reversed(path):
        if match := _LLAMA_FOLDER.fullmatch(part):
            if match["site"] == "R":
                return HookPoint(int(match["layer"]))
            return HookPoint(other=f"{part} (not the residual stream)")
    return UNKNOWN


def _gemma_scope(path: Sequence[str]) -> HookPoint:
    """Gemma Scope names repositories by the place they read, Gemma Scope 2 folders within."""
    for part in path:
        if match := _GEMMA_OTHER.fullmatch(part):
            return HookPoint(other=f"{match['site']} (not the residual stream)")
        if part == "embedding":
            return HookPoint(other="the embedding")
    return _layer_in(_GEMMA_LAYER, reversed(path))


def _layer_in(pattern: re.Pattern[str], parts: Iterable[str]) -> HookPoint:
    for part in parts:
        if match := pattern.fullmatch(part):
            return HookPoint(int(match["layer"]))
    return UNKNOWN


_PATH_READERS: Mapping[Format, Callable[[Sequence[str]], HookPoint]] = {
    "qwen-scope": _qwen_scope,
    "saelens": _saelens,
    "sparsify": _sparsify,
    "dictionary-learning": _dictionary_learning,
    "gemma-scope": _gemma_scope,
    "llama-scope": _llama_scope,
}
