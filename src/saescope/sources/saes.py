"""From names and paths to SAEs: which format, which layers, which k. Opens no weights and needs no torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saescope.errors import SourceError
from saescope.sources.catalog import (
    SaeName,
    canonical_folders,
    layer_of,
    model_of,
    parse_registry_name,
    parse_sae_name,
)
from saescope.sources.files import Files, LocalFiles, open_files
from saescope.sources.layouts import (
    SUPPORTED_FILES,
    SaeLocation,
    find_saes,
    missing_config,
    read_sae_config,
    with_config,
)

_DEPTH, _MOST_FILES = 6, 50_000


@dataclass(frozen=True)
class SaeSource:
    """The SAEs of one checkpoint; k is what was given or what names say, None where each SAE's files say it."""

    files: Files
    locations: tuple[SaeLocation, ...]
    k: int | None
    trained_on: str | None

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers there is an SAE of, ascending."""
        return tuple(
            sorted({place.hook.layer for place in self.locations if place.hook.layer is not None})
        )

    def choose_layers(self, requested: Sequence[int] | None) -> tuple[int, ...]:
        """The requested layers, or the middle one; raises SourceError for a layer that has no SAE here."""
        layers = self.layers
        if not requested:
            if not layers:
                raise SourceError(
                    f"{self.files.name}: which layer the SAE is of is not said: give it with --layers"
                )
            return (layers[(len(layers) - 1) // 2],)
        for layer in requested:
            if layers and layer not in layers:
                file = (
                    f"layer{layer}.sae.pt"
                    if self.locations[0].format == "qwen-scope"
                    else f"SAE of layer {layer}"
                )
                raise SourceError(
                    f"{self.files.name} has no {file}; it has layers {ranges(layers)}"
                )
        if len(set(requested)) > 1 and not layers:
            raise SourceError(
                f"{self.files.name} is one SAE: ask for one layer, not {ranges(sorted(set(requested)))}"
            )
        return tuple(sorted(set(requested)))

    def locate(self, layer: int) -> SaeLocation:
        """The SAE of this layer, with what its config says; raises SourceError where there is none or several."""
        self.choose_layers([layer])
        found = [place for place in self.locations if place.hook.layer in (layer, None)]
        if len(found) > 1:
            first, second = sorted(place.weights for place in found)[:2]
            raise SourceError(
                f"{self.files.name} has {len(found)} SAEs of layer {layer} ({first}, {second}…): "
                f"choose by parts of their paths, as in {self.files.name}/{found[0].folder or found[0].weights}"
            )
        place = with_config(self.files, found[0])
        if place.hook.other is not None or place.hook.layer not in (layer, None):
            said = place.hook.other or f"layer {place.hook.layer}"
            raise SourceError(
                f"{self.files.name}: the config of {place.weights} says it reads {said}, not layer {layer}"
            )
        return place


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
    """Find SAEs: a folder, one file, a hub id or a registry name, the last three perhaps with a path within.

    The path's parts choose among several SAEs: those whose own path has them, in this order. k is the argument, or `k`
    of a Qwen-Scope folder's cfg.json, or what its name says. Raises SourceError where there is no SAE of a format that
    is known, or of more than one, and for those that read something else than a layer's output.
    """
    files, parts, asked_for = _located(ref, offline=offline)
    try:
        names = _tree(files, len(parts) - 1 if Path(ref).expanduser().is_file() else _DEPTH)
    except SourceError as error:
        if not parts or parse_registry_name(ref):
            raise
        raise type(error)(f"{ref} does not exist; as a hub id and a path: {error}") from error
    around = _folders(files)
    locations = _chosen(find_saes(files, names, around), parts)
    if not locations:
        why = missing_config(names) or f"looked for {SUPPORTED_FILES}"
        if parts:
            why = f"of {files.name} no SAE has {'/'.join(parts)} in its path"
        raise SourceError(f"{ref} has no SAE: {why}")
    formats = sorted({place.format for place in locations})
    if len(formats) > 1:
        raise SourceError(
            f"{ref} holds SAEs of several formats ({', '.join(formats)}): give the folder of one of them"
        )
    usable = [place for place in locations if place.hook.other is None]
    if not usable:
        raise SourceError(
            f"{ref} reads {locations[0].hook.other}: only SAEs of a layer's output (the residual stream) are supported"
        )
    if formats != ["qwen-scope"]:
        said = next((place.trained_on for place in usable if place.trained_on), None)
        by_name = next(filter(None, map(model_of, _names(files))), None)
        return SaeSource(files, tuple(usable), k, asked_for or by_name or said)
    named = sae_name_of(files)
    config = read_sae_config(files, "cfg.json") if "cfg.json" in files.names() else {}
    trained_on = config.get("trained_on")
    return SaeSource(
        files=files,
        locations=tuple(usable),
        k=_find_k(files, k, config.get("k"), named.k if named else None),
        trained_on=trained_on if isinstance(trained_on, str) else (named.model if named else None),
    )


def _located(ref: str, *, offline: bool) -> tuple[Files, tuple[str, ...], str | None]:
    """Where the files are, the parts of a path that choose among them, and the model a registry name speaks of."""
    path = Path(ref).expanduser()
    if path.is_file():
        if path.suffix == ".pt" and layer_of(path.name) is None and path.name != "ae.pt":
            raise SourceError(
                f"{ref}: a single SAE file is named layer<N>.sae.pt, so that its layer is known"
            )
        root = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        return LocalFiles(root), path.relative_to(root).parts, None
    if path.is_dir():
        return LocalFiles(path), (), None
    if known := parse_registry_name(ref):
        return open_files(known.repo, offline=offline), known.parts, known.model
    parts = ref.split("/")
    explicit = ref.startswith((".", "/", "~"))
    if (above := _existing(path)) is not None and (explicit or len(above.parts) > 1):
        return LocalFiles(above), path.relative_to(above).parts, None
    is_hub_path = len(parts) > 2 and all(parts) and not explicit
    repo = "/".join(parts[:2]) if is_hub_path else ref
    return open_files(repo, offline=offline), tuple(parts[2:]) if is_hub_path else (), None


def _existing(path: Path) -> Path | None:
    """The folder that a path begins with where it goes on with parts of paths of SAEs within; None where none is."""
    here = Path.cwd()
    for above in list(path.parents)[:4]:
        if above.is_dir():
            inside = above.resolve()
            return (
                None if inside in (here, *here.parents, Path.home(), Path(inside.anchor)) else above
            )
    return None


def _tree(files: Files, depth: int) -> list[str]:
    """All files of a checkpoint, so many folders deep; raises SourceError where a local folder cannot be one."""
    if not isinstance(files, LocalFiles):
        return sorted(files.names())
    found: list[str] = []
    for folder, folders, names in os.walk(files.folder):
        inner = Path(folder).relative_to(files.folder)
        deep = len(inner.parts) >= depth
        folders[:] = [] if deep else sorted(name for name in folders if not name.startswith("."))
        found += [(inner / name).as_posix() for name in names]
        if len(found) > _MOST_FILES:
            raise SourceError(
                f"{files.name} has over {_MOST_FILES:,} files: give the folder of the SAE itself"
            )
    return sorted(found)


def _chosen(locations: Sequence[SaeLocation], parts: Sequence[str]) -> list[SaeLocation]:
    """The SAEs whose path has these parts in this order; `canonical` is the average L0 nearest to 100 of its folder."""
    if "canonical" in parts:
        parts = [part for part in parts if part != "canonical"]
        nearest = canonical_folders([place.folder for place in locations])
        locations = [place for place in locations if place.folder in nearest]
    return [place for place in locations if _has_parts(place.weights.split("/"), parts)]


def _has_parts(path: Sequence[str], parts: Sequence[str]) -> bool:
    rest = iter(path)
    return all(part in rest for part in parts)


def sae_name_of(files: Files) -> SaeName | None:
    """Model, width and k where a name in the checkpoint's path follows the grammar of releases."""
    return next(filter(None, map(parse_sae_name, _names(files))), None)


def release_name(files: Files) -> str:
    """The release's name by Qwen-Scope's grammar wherever the path carries one, else what the user called it."""
    return next((name for name in _names(files) if parse_sae_name(name)), files.name)


def _names(files: Files) -> list[str]:
    """Everything in the checkpoint's path that could carry a release's name, innermost first."""
    return [
        part.split("--")[-1] for part in reversed(_folders(files))
    ]  # the hub's cache writes models--Owner--Name


def _folders(files: Files) -> tuple[str, ...]:
    """Names of the folders the checkpoint lies in, its own last; of a hub repository its name."""
    return (
        files.folder.resolve().parts
        if isinstance(files, LocalFiles)
        else (files.name.split("/")[-1],)
    )


def _find_k(files: Files, given: int | None, configured: object, named: int | None) -> int:
    if given is not None:
        return given
    if isinstance(configured, int) and not isinstance(configured, bool):
        return configured
    if named is not None:
        return named
    raise SourceError(
        f"{files.name} does not say its k (no L0_… in the name, no k in cfg.json): give it with --k"
    )
