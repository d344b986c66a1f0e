"""From names and paths to SAEs: which folder, which layers, which k. Opens no weights and needs no torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saescope.errors import SourceError
from saescope.sources.catalog import SaeName, find_release, layer_file, layer_of, parse_sae_name
from saescope.sources.files import Files, LocalFiles, open_files


@dataclass(frozen=True)
class SaeSource:
    """The files of one SAE release and what their names say."""

    files: Files
    layers: tuple[int, ...]
    k: int
    trained_on: str | None

    def choose(self, wanted: Sequence[int] | None) -> tuple[int, ...]:
        """The wanted layers, or the middle one; raises SourceError for a layer that has no file."""
        if wanted is None:
            return (self.layers[(len(self.layers) - 1) // 2],)
        for layer in wanted:
            if layer not in self.layers:
                raise SourceError(f"{self.files.name} has no {layer_file(layer)}; it has layers {ranges(self.layers)}")
        return tuple(sorted(set(wanted)))


def ranges(layers: Sequence[int]) -> str:
    """Sorted layers for people: `0-3, 17`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def open_sae(ref: str, *, k: int | None = None, offline: bool = False) -> SaeSource:
    """Find a release: a folder of `layer{n}.sae.pt`, one such file, a hub id, or a registry name.

    k is the argument, or `k` of a cfg.json, or what the name says; raises SourceError where none tells.
    """
    path = Path(ref).expanduser()
    only: int | None = None
    if path.is_file():
        only = layer_of(path.name)
        if only is None:
            raise SourceError(f"{ref}: a single SAE file is named layer<N>.sae.pt, so that its layer is known")
        files: Files = LocalFiles(path.parent)
    else:
        release = find_release(ref)
        files = open_files(release.repo if release else ref, offline=offline)
    found = [layer for layer in map(layer_of, files.names()) if layer is not None]
    layers = (only,) if only is not None else tuple(sorted(found))
    if not layers:
        raise SourceError(f"{ref} has no layer<N>.sae.pt: is it a Qwen-Scope SAE?")
    named = what_name_says(files)
    trained_on = _config(files).get("trained_on")
    return SaeSource(
        files=files,
        layers=layers,
        k=_find_k(files, k, named.k if named else None),
        trained_on=trained_on if isinstance(trained_on, str) else (named.model if named else None),
    )


def what_name_says(files: Files) -> SaeName | None:
    """Model, width and k where a name in the checkpoint's path follows the grammar of releases."""
    return next(filter(None, map(parse_sae_name, _names(files))), None)


def release_name(files: Files) -> str:
    """The release's name by Qwen-Scope's grammar wherever the path carries one, else what the user called it."""
    return next((name for name in _names(files) if parse_sae_name(name)), files.name)


def _names(files: Files) -> list[str]:
    """Everything in the checkpoint's path that could carry a release's name, innermost first."""
    if not isinstance(files, LocalFiles):
        return [files.name.split("/")[-1]]
    parts = reversed(files.folder.resolve().parts)
    return [part.split("--")[-1] for part in parts]  # the hub's cache writes models--Owner--Name


def _config(files: Files) -> dict[str, object]:
    if "cfg.json" not in files.names():
        return {}
    path = files.path("cfg.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} is not JSON: {error}") from error
    return config if isinstance(config, dict) else {}


def _find_k(files: Files, given: int | None, named: int | None) -> int:
    if given is not None:
        return given
    configured = _config(files).get("k")
    if isinstance(configured, int) and not isinstance(configured, bool):
        return configured
    if named is not None:
        return named
    raise SourceError(f"{files.name} does not say its k (no L0_… in the name, no k in cfg.json): give it with --k")
