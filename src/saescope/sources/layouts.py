"""Which files make an SAE, format by format, and what their paths and configs say of it. Needs no torch.

| format | weights | config |
| Qwen-Scope | layer<N>.sae.pt | cfg.json may say k |
| SAELens | sae_weights.safetensors | cfg.json beside it |
| sparsify | sae.safetensors | cfg.json beside it |
| dictionary_learning | ae.pt | config.json beside it |
| Gemma Scope | params.npz, params.safetensors | config.json may lie beside it |
| Llama Scope | checkpoints/final.safetensors | hyperparams.json beside the folder |
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from saescope.errors import SourceError
from saescope.sources.files import Files

Format = Literal[
    "qwen-scope", "saelens", "sparsify", "dictionary-learning", "gemma-scope", "llama-scope"
]
Config = Mapping[str, Any]

_MAX_CONFIG = 2**20
_NEAR = 4  # folders above the checkpoint whose names may still speak of the SAE


class Hook(NamedTuple):
    """The layer whose output an SAE reads, as far as it is said; `other` names a place that is no layer's output."""

    layer: int | None = None
    other: str | None = None


@dataclass(frozen=True)
class SaeLocation:
    """Where one SAE lies in a checkpoint, and what its path and config say; nothing is known of its tensors yet."""

    format: Format
    weights: str
    config: str | None
    hook: Hook
    d_sae: int | None = None
    trained_on: str | None = None

    @property
    def folder(self) -> str:
        """Its folder within the checkpoint, empty for the checkpoint's own."""
        above = self.weights.split("/")[: -2 if self.format == "llama-scope" else -1]
        return "/".join(above)


# The file that holds the weights, by its name; where its config lies, and whether there can be none.
_WEIGHTS: tuple[tuple[re.Pattern[str], Format, str, bool], ...] = (
    (re.compile(r"layer\d+\.sae\.pt"), "qwen-scope", "cfg.json", False),
    (re.compile(r"sae_weights\.safetensors"), "saelens", "cfg.json", True),
    (re.compile(r"sae\.safetensors"), "sparsify", "cfg.json", True),
    (re.compile(r"ae\.pt"), "dictionary-learning", "config.json", True),
    (re.compile(r"params\.(npz|safetensors)"), "gemma-scope", "config.json", False),
    (re.compile(r"final\.safetensors"), "llama-scope", "hyperparams.json", True),
)
LOOKED_FOR = (
    "layer<N>.sae.pt (Qwen-Scope), sae_weights.safetensors with cfg.json (SAELens), params.npz or params.safetensors "
    "(Gemma Scope), sae.safetensors with cfg.json (sparsify), ae.pt with config.json (dictionary_learning), "
    "checkpoints/final.safetensors with hyperparams.json (Llama Scope)"
)


def find_saes(files: Files, names: Sequence[str], around: Sequence[str]) -> list[SaeLocation]:
    """Every SAE among these files, which lie in folders called `around`; raises SourceError for a config that is none.

    A config is only read where the path does not say which layer the SAE is of.
    """
    known = frozenset(names)
    found = []
    for name in sorted(names):
        kind, config, needed = _format_of(name)
        if kind is not None and (config in known or not needed):
            hook = hook_in_path(kind, (*around[-_NEAR:], *name.split("/")))
            place = SaeLocation(kind, name, config if config in known else None, hook)
            found.append(with_config(files, place) if hook == Hook() else place)
    return found


def missing_config(names: Sequence[str]) -> str | None:
    """The config that is missing beside the first file of weights that needs one, in words."""
    for name in sorted(names):
        kind, config, needed = _format_of(name)
        if kind is not None and needed and config not in names:
            return f"{name} is there, but not its {config}"
    return None


def _format_of(name: str) -> tuple[Format | None, str, bool]:
    """The format of a file of weights, where its config would lie, and whether there must be one."""
    folder, _, file = name.rpartition("/")
    for pattern, kind, config, needed in _WEIGHTS:
        if pattern.fullmatch(file):
            if kind == "llama-scope":
                above, _, last = folder.rpartition("/")
                if last != "checkpoints":
                    continue
                folder = above
            return kind, f"{folder}/{config}" if folder else config, needed
    return None, "", False


def with_config(files: Files, place: SaeLocation) -> SaeLocation:
    """The same with what its config says, which is fetched where need be; raises SourceError where it is damaged."""
    if place.config is None:
        return place
    config = read_sae_config(files, place.config)
    hook, d_sae, trained_on = _SAID[place.format](config)
    return replace(
        place, hook=hook if hook != Hook() else place.hook, d_sae=d_sae, trained_on=trained_on
    )


def read_sae_config(files: Files, name: str) -> Config:
    """A JSON object of the checkpoint; raises SourceError where the file holds anything else."""
    path = files.path(name)
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise SourceError(f"{path} has {path.stat().st_size:,} bytes: that is no SAE's config")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise SourceError(f"{path} holds a {type(config).__name__}, not an object of settings")
    return config


def hook_of(name: object) -> Hook:
    """A hook point by the name that TransformerLens or a module gives it: `resid_pre` of a layer is the one before."""
    if not isinstance(name, str):
        return Hook()
    if match := re.fullmatch(r"blocks\.(\d{1,4})\.hook_resid_(pre|post)", name):
        layer = int(match[1]) - (match[2] == "pre")
        return Hook(layer) if layer >= 0 else Hook(other=f"{name} (the embedding)")
    if match := re.fullmatch(r"(?:[\w.]*\.)?(?:layers|h|blocks)\.(\d{1,4})(?:\.output)?", name):
        return Hook(int(match[1]))
    return Hook(other=name)


def hook_in_path(kind: Format, path: Sequence[str]) -> Hook:
    """What the folders and the file's name say, where a maker's paths can be relied on; else nothing."""
    inner = list(reversed(path))
    match kind:
        case "qwen-scope":
            return Hook(int("".join(filter(str.isdigit, path[-1]))))
        case "saelens":
            return next(
                (
                    hook_of(part)
                    for part in inner
                    if part.startswith("blocks.") and "hook_resid" in part
                ),
                Hook(),
            )
        case "sparsify":
            folders = [
                part.replace("layers_", "layers.")
                for part in inner
                if re.search(r"(^|\.)(layers|h)[._]\d", part)
            ]
            return (
                hook_of(folders[0])
                if folders
                else Hook(other="embed_tokens")
                if "embed_tokens" in path
                else Hook()
            )
        case "dictionary-learning":
            layers = [
                re.fullmatch(r"resid_post_layer_(\d{1,4})(?:_checkpoints)?", part) for part in inner
            ]
            return next((Hook(int(found[1])) for found in layers if found), Hook())
        case "llama-scope":
            return _llama_scope_path(inner)
        case "gemma-scope":
            return _gemma_scope_path(path)


def _llama_scope_path(inner: Sequence[str]) -> Hook:
    for part in inner:
        if match := re.fullmatch(r"Llama[\w.-]+-Base-L(\d{1,3})([A-Z]+)-\d+x", part):
            return (
                Hook(int(match[1]))
                if match[2] == "R"
                else Hook(other=f"{part} (not the residual stream)")
            )
    return Hook()


def _gemma_scope_path(path: Sequence[str]) -> Hook:
    """The first's repositories are named by their place, the second's folders; either has `layer_N…` within."""
    for part in path:
        place = re.fullmatch(
            r"(?:gemma-scope-[\w.-]+-)?(att|mlp|(?:trans|cross)coders?(?:_all)?|(?:attn|mlp)_out(?:_all)?|clt)",
            part,
        )
        if place:
            return Hook(other=f"{place[1]} (not the residual stream)")
        if part == "embedding":
            return Hook(other="the embedding")
    layers = [re.match(r"layer_(\d{1,4})(?:_|$)", part) for part in reversed(path)]
    return next((Hook(int(found[1])) for found in layers if found), Hook())


class _Said(NamedTuple):
    hook: Hook = Hook()
    d_sae: int | None = None
    trained_on: str | None = None


def _saelens(config: Config) -> _Said:
    about = config.get("metadata")
    about = about if isinstance(about, dict) else config  # before version 6 it was all in one
    name = about.get("hook_name", about.get("hook_point", about.get("hf_hook_name")))
    if name is None or about.get("hook_head_index") is None:
        hook = hook_of(name)
    else:
        hook = Hook(other=f"head {about['hook_head_index']!r:.20} of {name}")
    if (out := about.get("hook_name_out")) not in (None, name):
        hook = Hook(other=f"{name} to {out} (a transcoder)")
    return _Said(hook, _count(config.get("d_sae")), _text(about.get("model_name")))


def _sparsify(config: Config) -> _Said:
    width, times = _count(config.get("d_in")), _count(config.get("expansion_factor"))
    latents = _count(config.get("num_latents"))
    return _Said(d_sae=latents or (width * times if width and times else None))


def _dictionary_learning(config: Config) -> _Said:
    trainer, buffer = (
        part if isinstance(part := config.get(name), dict) else {} for name in ("trainer", "buffer")
    )
    layer, module = trainer.get("layer"), trainer.get("submodule_name")
    hook = (
        Hook(layer)
        if isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer < 10**4
        else Hook()
    )
    if isinstance(module, str) and re.search(r"attn|attention|mlp", module):
        hook = Hook(other=module)
    if (
        buffer.get("io") == "in" and hook.layer is not None
    ):  # a layer's input is the output of the one before
        hook = Hook(hook.layer - 1) if hook.layer else Hook(other="the embedding")
    return _Said(hook, _count(trainer.get("dict_size")), _text(trainer.get("lm_name")))


def _gemma_scope(config: Config) -> _Said:
    name = config.get("hf_hook_point_in")
    out = config.get("hf_hook_point_out")
    hook = (
        Hook(other=f"{name} to {out} (a transcoder)") if out not in (None, name) else hook_of(name)
    )
    return _Said(hook, _count(config.get("width")), _text(config.get("model_name")))


def _llama_scope(config: Config) -> _Said:
    return _Said(
        hook_of(config.get("hook_point_in")), _count(config.get("d_sae")), "meta-llama/Llama-3.1-8B"
    )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


_SAID = {
    "qwen-scope": lambda config: _Said(trained_on=_text(config.get("trained_on"))),
    "saelens": _saelens,
    "sparsify": _sparsify,
    "dictionary-learning": _dictionary_learning,
    "gemma-scope": _gemma_scope,
    "llama-scope": _llama_scope,
}
