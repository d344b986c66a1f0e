"""Which files make an SAE, format by format, and what their configs say. Needs no torch.

| format | weights | config |
| Qwen-Scope | layer<N>.sae.pt | cfg.json, optional |
| SAELens | sae_weights.safetensors | cfg.json in the same folder |
| sparsify | sae.safetensors | cfg.json in the same folder |
| dictionary_learning | ae.pt | config.json in the same folder, optional |
| Gemma Scope | params.npz, params.safetensors | config.json, optional |
| Llama Scope | checkpoints/final.safetensors | hyperparams.json one folder above |
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from saescope.errors import SourceError
from saescope.sources.catalog import Format
from saescope.sources.files import Files
from saescope.sources.formats.configs import MAX_COUNT, Config
from saescope.sources.hook_points import (
    UNKNOWN,
    HookPoint,
    hook_in_path,
    input_of,
    parse_hook_point,
)
from saescope.sources.regular_files import UnreadableFileError, read_json

SUPPORTED_FILES = (
    "layer<N>.sae.pt (Qwen-Scope), sae_weights.safetensors with cfg.json (SAELens), "
    "params.npz or params.safetensors (Gemma Scope), sae.safetensors with cfg.json (sparsify), "
    "ae.pt (dictionary_learning), "
    "checkpoints/final.safetensors with hyperparams.json (Llama Scope)"
)
_MAX_CONFIG_BYTES = 2**20
_PARENTS = 4  # as many folders above a checkpoint may name the hook point
_MAX_LAYER = 10**4


@dataclass(frozen=True)
class SaeLocation:
    """Where one SAE lies in a checkpoint, and what its path and config say of it."""

    format: Format
    weights: str
    config: str | None
    hook: HookPoint
    d_sae: int | None = None
    trained_on: str | None = None
    d_model: int | None = None

    @property
    def folder(self) -> str:
        """Its folder within the checkpoint; empty for the checkpoint's own folder."""
        levels = 2 if self.format == "llama-scope" else 1
        return "/".join(self.weights.split("/")[:-levels])


@dataclass(frozen=True)
class _Layout:
    """How a format names its files; weights may lie in a subfolder of the SAE's folder."""

    format: Format
    weights: re.Pattern[str]
    config: str
    config_required: bool = True
    subfolder: str | None = None

    def config_for(self, name: str) -> str | None:
        """The path of the config if `name` is a weights file of this layout, else None."""
        folder, _, file = name.rpartition("/")
        if not self.weights.fullmatch(file):
            return None
        if self.subfolder:
            folder, _, last = folder.rpartition("/")
            if last != self.subfolder:
                return None
        return f"{folder}/{self.config}" if folder else self.config


_LAYOUTS = (
    _Layout("qwen-scope", re.compile(r"layer\d+\.sae\.pt"), "cfg.json", config_required=False),
    _Layout("saelens", re.compile(r"sae_weights\.safetensors"), "cfg.json"),
    _Layout("sparsify", re.compile(r"sae\.safetensors"), "cfg.json"),
    _Layout("dictionary-learning", re.compile(r"ae\.pt"), "config.json", config_required=False),
    _Layout(
        "gemma-scope",
        re.compile(r"params\.(npz|safetensors)"),
        "config.json",
        config_required=False,
    ),
    _Layout(
        "llama-scope",
        re.compile(r"final\.safetensors"),
        "hyperparams.json",
        subfolder="checkpoints",
    ),
)


def find_saes(files: Files, names: Sequence[str], parents: Sequence[str]) -> list[SaeLocation]:
    """Every SAE among these files of a checkpoint whose own path is `parents`.

    A config is read only if the path does not say which layer the SAE reads. Raises SourceError
    for a damaged config.
    """
    existing = frozenset(names)
    locations = []
    for name in sorted(names):
        for layout in _LAYOUTS:
            config = layout.config_for(name)
            if config is None or (layout.config_required and config not in existing):
                continue
            hook = hook_in_path(layout.format, (*parents[-_PARENTS:], *name.split("/")))
            existing_config = config if config in existing else None
            location = SaeLocation(layout.format, name, existing_config, hook)
            if hook == UNKNOWN:
                location = with_config(files, location)
            locations.append(location)
            break
    return locations


def missing_config(names: Sequence[str]) -> str | None:
    """A sentence on the first weights file whose required config is missing, or None."""
    existing = frozenset(names)
    for name in sorted(names):
        for layout in _LAYOUTS:
            config = layout.config_for(name)
            if config is not None and layout.config_required and config not in existing:
                return f"{name} is there, but not its {config}"
    return None


def with_config(files: Files, location: SaeLocation) -> SaeLocation:
    """The location with what its config says, which is fetched if needed.

    Raises SourceError if the config is damaged.
    """
    if location.config is None:
        return location
    config = read_sae_config(files, location.config)
    description = _CONFIG_READERS[location.format](config)
    hook = description.hook
    if hook == UNKNOWN:
        hook = location.hook
    return replace(
        location,
        hook=hook,
        d_sae=description.d_sae,
        trained_on=description.trained_on,
        d_model=description.d_model,
    )


def read_sae_config(files: Files, name: str) -> Config:
    """A JSON object of the checkpoint; raises SourceError for any other content."""
    path = files.path(name)
    try:
        config = read_json(path, _MAX_CONFIG_BYTES)
    except UnreadableFileError as error:
        raise SourceError(f"{path} is no SAE's config: {error}") from error
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise SourceError(f"{path} holds a {type(config).__name__}, not an object of settings")
    return config


class _Description(NamedTuple):
    """What a config says of an SAE, as far as it says it."""

    hook: HookPoint = UNKNOWN
    d_sae: int | None = None
    trained_on: str | None = None
    d_model: int | None = None


def _qwen_scope(config: Config) -> _Description:
    return _Description(trained_on=_text(config.get("trained_on")))


def _saelens(config: Config) -> _Description:
    metadata = config.get("metadata")
    if not isinstance(metadata, dict):  # before version 6 all settings were in one object
        metadata = config
    name = metadata.get("hook_name", metadata.get("hook_point", metadata.get("hf_hook_name")))
    head = metadata.get("hook_head_index")
    output = metadata.get("hook_name_out")
    hook = parse_hook_point(name)
    if name is not None and head is not None:
        hook = HookPoint(other=f"head {head!r:.20} of {name}")
    if output not in (None, name):
        hook = _transcoder(name, output)
    d_sae, d_model = _count(config.get("d_sae")), _count(config.get("d_in"))
    return _Description(hook, d_sae, _text(metadata.get("model_name")), d_model)


def _sparsify(config: Config) -> _Description:
    latents = _count(config.get("num_latents"))
    d_in, factor = _count(config.get("d_in")), _count(config.get("expansion_factor"))
    if latents is None and d_in and factor:
        latents = d_in * factor
    return _Description(d_sae=latents, d_model=d_in)


def _dictionary_learning(config: Config) -> _Description:
    trainer, buffer = _section(config, "trainer"), _section(config, "buffer")
    layer, module = trainer.get("layer"), trainer.get("submodule_name")
    hook = UNKNOWN
    if isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer < _MAX_LAYER:
        hook = input_of(layer) if buffer.get("io") == "in" else HookPoint(layer)
    if isinstance(module, str) and re.search(r"attn|attention|mlp", module):
        hook = HookPoint(other=module)
    d_sae, d_model = _count(trainer.get("dict_size")), _count(trainer.get("activation_dim"))
    return _Description(hook, d_sae, _text(trainer.get("lm_name")), d_model)


def _gemma_scope(config: Config) -> _Description:
    name, output = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    hook = parse_hook_point(name)
    if output not in (None, name):
        hook = _transcoder(name, output)
    return _Description(hook, _count(config.get("width")), _text(config.get("model_name")))


def _llama_scope(config: Config) -> _Description:
    hook = parse_hook_point(config.get("hook_point_in"))
    d_sae, d_model = _count(config.get("d_sae")), _count(config.get("d_model"))
    return _Description(hook, d_sae, "meta-llama/Llama-3.1-8B", d_model)


def _transcoder(name: object, output: object) -> HookPoint:
    return HookPoint(other=f"{name} to {output} (a transcoder)")


def _section(config: Config, key: str) -> Config:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_COUNT:
        return value
    return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


_CONFIG_READERS: Mapping[Format, Callable[[Config], _Description]] = {
    "qwen-scope": _qwen_scope,
    "saelens": _saelens,
    "sparsify": _sparsify,
    "dictionary-learning": _dictionary_learning,
    "gemma-scope": _gemma_scope,
    "llama-scope": _llama_scope,
}
