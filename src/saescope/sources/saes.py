"""From names and paths to SAEs: which format, which layers, which k. Opens no weights."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from saescope.errors import SourceError
from saescope.sources.catalog import (
    SaeName,
    canonical_folders,
    layer_file,
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
from saescope.sources.mistaken import refuse_lfs_pointer, what_sae_file, why_no_sae
from saescope.sources.references import parse_hub_ref

_MAX_DEPTH, _MAX_FILES = 6, 50_000
_PARENTS_TRIED = 4


@dataclass(frozen=True)
class SaeSource:
    """The SAEs of one checkpoint, by layer.

    `k` comes from the caller or from names; it is None if each SAE's own files say it.
    """

    files: Files
    locations: tuple[SaeLocation, ...]
    k: int | None
    trained_on: str | None

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have an SAE, ascending; empty if a single SAE does not name its layer."""
        layers = {location.hook.layer for location in self.locations}
        return tuple(sorted(layer for layer in layers if layer is not None))

    def choose_layers(self, requested: Sequence[int] | None) -> tuple[int, ...]:
        """The requested layers, ascending, or the middle one.

        Raises SourceError for a layer without an SAE.
        """
        name, layers = self.files.name, self.layers
        if not requested:
            if not layers:
                raise SourceError(
                    f"{name}: cannot tell which layer this SAE belongs to: pass layers=N"
                )
            return (layers[(len(layers) - 1) // 2],)
        chosen = tuple(sorted(set(requested)))
        if not layers and len(chosen) > 1:
            raise SourceError(f"{name} is one SAE: ask for one layer, not {ranges(chosen)}")
        for layer in requested:
            if layers and layer not in layers:
                missing = f"SAE of layer {layer}"
                if self.locations[0].format == "qwen-scope":
                    missing = layer_file(layer)
                raise SourceError(f"{name} has no {missing}; it has layers {ranges(layers)}")
        return chosen

    def locate(self, layer: int) -> SaeLocation:
        """The SAE of this layer, with what its config says.

        Raises SourceError if the layer has no SAE or several, or if the config names another layer.
        """
        self.choose_layers([layer])
        name = self.files.name
        matching = [place for place in self.locations if place.hook.layer in (layer, None)]
        if len(matching) > 1:
            first, second = sorted(place.weights for place in matching)[:2]
            example = matching[0].folder or matching[0].weights
            raise SourceError(
                f"{name} has {len(matching)} SAEs of layer {layer} ({first}, {second}…): "
                f"choose by parts of their paths, as in {name}/{example}"
            )
        location = with_config(self.files, matching[0])
        hook = location.hook
        if hook.other is not None or hook.layer not in (layer, None):
            configured = hook.other or f"layer {hook.layer}"
            raise SourceError(
                f"{name}: the config of {location.weights} says it reads {configured}, "
                f"not layer {layer}"
            )
        return location


def ranges(layers: Sequence[int]) -> str:
    """Sorted layers for people: `0-3, 17`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    shown = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join(shown)


def open_sae(ref: str, *, k: int | None = None, offline: bool = False) -> SaeSource:
    """Find the SAEs of a folder, a file, a hub id or a registry name, without opening weights.

    A path may follow a folder, a hub id or a registry name; its parts choose among several SAEs:
    those whose own path has these parts in this order. `k` is the argument, or `k` of a Qwen-Scope
    folder's cfg.json, or what the name says. Raises SourceError if there is no SAE of a supported
    format, if there are several formats, and for SAEs that do not read a layer's output.

    >>> import saescope as ss
    >>> source = ss.open_sae("saescope-tiny-sae")
    >>> source.layers, source.k
    ((0, 1, 2, 3, 4, 5), 32)
    >>> source.choose_layers(None)
    (2,)
    """
    reference = _resolve(ref, offline=offline)
    files, parts = reference.files, reference.parts
    names = _list_files(ref, reference)
    locations = _with_parts(find_saes(files, names, _folder_names(files)), parts)
    if not locations:
        raise SourceError(f"{ref} {_why_none(ref, files, names, parts)}")
    formats = sorted({location.format for location in locations})
    if len(formats) > 1:
        raise SourceError(
            f"{ref} holds SAEs of several formats ({', '.join(formats)}): "
            "give the folder of one of them"
        )
    usable = tuple(location for location in locations if location.hook.other is None)
    if not usable:
        raise SourceError(
            f"{ref} reads {locations[0].hook.other}: "
            "only SAEs of a layer's output (the residual stream) are supported"
        )
    if formats == ["qwen-scope"]:
        return _qwen_scope_source(files, usable, k)
    by_name = next(filter(None, map(model_of, _release_names(files))), None)
    by_config = next((place.trained_on for place in usable if place.trained_on), None)
    return SaeSource(files, usable, k, reference.model or by_name or by_config)


def _why_none(ref: str, files: Files, names: Sequence[str], parts: Sequence[str]) -> str:
    """Why there is no SAE, and what to do."""
    path = Path(ref).expanduser()
    if path.is_file():
        refuse_lfs_pointer(path, SourceError)
    mistaken = what_sae_file(path) if path.is_file() else why_no_sae(names)
    if mistaken:
        return mistaken
    if parts:
        return f"has no SAE: of {files.name} no SAE has {'/'.join(parts)} in its path"
    return f"has no SAE: {missing_config(names) or f'looked for {SUPPORTED_FILES}'}"


def _qwen_scope_source(
    files: Files, locations: tuple[SaeLocation, ...], k: int | None
) -> SaeSource:
    """The source with k and model from cfg.json or the release's name."""
    config = read_sae_config(files, "cfg.json") if "cfg.json" in files.names() else {}
    name = sae_name_of(files)
    configured_k, trained_on = config.get("k"), config.get("trained_on")
    if k is None and isinstance(configured_k, int) and not isinstance(configured_k, bool):
        k = configured_k
    if k is None and name is not None:
        k = name.k
    if k is None:
        raise SourceError(
            f"{files.name} does not say its k (no L0_… in the name, no k in cfg.json): pass k=N"
        )
    if not isinstance(trained_on, str):
        trained_on = name.model if name else None
    return SaeSource(files, locations, k, trained_on)


@dataclass(frozen=True)
class _Reference:
    """A checkpoint, the parts of a path that choose among its SAEs, and a registry name's model."""

    files: Files
    parts: tuple[str, ...] = ()
    model: str | None = None


def _resolve(ref: str, *, offline: bool) -> _Reference:
    path = Path(ref).expanduser()
    if path.is_file():
        return _resolve_file(path)
    if path.is_dir():
        return _Reference(LocalFiles(path))
    if registered := parse_registry_name(ref):
        files = open_files(registered.repo, offline=offline)
        return _Reference(files, registered.parts, registered.model)
    is_path = ref.startswith((".", "/", "~"))
    folder = _existing_parent(path)
    if folder is not None and (is_path or len(folder.parts) > 1):
        return _Reference(LocalFiles(folder), path.relative_to(folder).parts)
    hub = parse_hub_ref(ref)
    if hub is None or not hub.parts:
        return _Reference(open_files(ref, offline=offline))
    return _Reference(open_files(str(replace(hub, parts=())), offline=offline), hub.parts)


def _resolve_file(path: Path) -> _Reference:
    if path.suffix == ".pt" and layer_of(path.name) is None and path.name != "ae.pt":
        raise SourceError(
            f"{path}: a single SAE file is named layer<N>.sae.pt, so that its layer is known"
        )
    folder = path.parent
    if folder.name == "checkpoints":
        folder = folder.parent
    return _Reference(LocalFiles(folder), path.relative_to(folder).parts)


def _existing_parent(path: Path) -> Path | None:
    """The folder at the start of a path that goes on with parts of SAEs' paths, or None.

    Folders that hold everything (root, home, the working directory) are no checkpoints.
    """
    working = Path.cwd()
    for parent in list(path.parents)[:_PARENTS_TRIED]:
        if parent.is_dir():
            resolved = parent.resolve()
            too_wide = (working, *working.parents, Path.home(), Path(resolved.anchor))
            return None if resolved in too_wide else parent
    return None


def _list_files(ref: str, reference: _Reference) -> list[str]:
    """All files of the checkpoint, sorted; a local folder is searched a few folders deep."""
    files, parts = reference.files, reference.parts
    if isinstance(files, LocalFiles):
        depth = len(parts) - 1 if Path(ref).expanduser().is_file() else _MAX_DEPTH
        return sorted(_walk(files, depth))
    try:
        return sorted(files.names())
    except SourceError as error:
        if not parts or parse_registry_name(ref):
            raise
        raise type(error)(f"{ref} does not exist; as a hub id and a path: {error}") from error


def _walk(files: LocalFiles, depth: int) -> Iterator[str]:
    count = 0
    for folder, subfolders, names in os.walk(files.folder):
        inner = Path(folder).relative_to(files.folder)
        if len(inner.parts) >= depth:
            subfolders.clear()
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        count += len(names)
        if count > _MAX_FILES:
            raise SourceError(
                f"{files.name} has over {_MAX_FILES:,} files: give the folder of the SAE itself"
            )
        for name in names:
            yield (inner / name).as_posix()


def _with_parts(locations: Sequence[SaeLocation], parts: Sequence[str]) -> list[SaeLocation]:
    """The SAEs whose path has these parts in this order.

    The part `canonical` stands for the average L0 nearest to 100 within each folder.
    """
    if "canonical" in parts:
        parts = [part for part in parts if part != "canonical"]
        canonical = canonical_folders(location.folder for location in locations)
        locations = [location for location in locations if location.folder in canonical]
    return [location for location in locations if _has_parts(location.weights, parts)]


def _has_parts(path: str, parts: Sequence[str]) -> bool:
    remaining = iter(path.split("/"))
    return all(part in remaining for part in parts)


def sae_name_of(files: Files) -> SaeName | None:
    """Model, width and k, if a name in the checkpoint's path is a Qwen-Scope release's name."""
    return next(filter(None, map(parse_sae_name, _release_names(files))), None)


def release_name(files: Files) -> str:
    """The Qwen-Scope release's name in the checkpoint's path, or else the user's name for it."""
    for name in _release_names(files):
        if parse_sae_name(name):
            return name
    return files.name


def _release_names(files: Files) -> list[str]:
    """Names in the checkpoint's path that may be a release's name, innermost first."""
    folders = reversed(_folder_names(files))
    return [folder.split("--")[-1] for folder in folders]  # the hub's cache: models--Owner--Name


def _folder_names(files: Files) -> tuple[str, ...]:
    """Folders of the checkpoint's path, its own last; of a hub repository its name."""
    if isinstance(files, LocalFiles):
        return files.folder.resolve().parts
    return (files.name.split("/")[-1],)
