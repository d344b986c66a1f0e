"""What a job would fetch, keep on disk and hold in memory. Fetches no weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from saescope.engine.config import max_length, read_config
from saescope.engine.contents import Contents
from saescope.engine.devices import DType, choose_dtype
from saescope.engine.needs import ModelSizes, file_names
from saescope.errors import NotCachedError, SourceError
from saescope.sources.budget import (
    ENCODE_BLOCK,
    TOKENIZER_FACTOR,
    JobSizes,
    activation_bytes,
)
from saescope.sources.catalog import Release, find_release, layer_file
from saescope.sources.checkpoint import CONFIG, INDEX, SINGLE, gguf_name
from saescope.sources.files import FileEntry, Files, HubFiles, is_offline, open_files
from saescope.sources.hook_points import HookPoint
from saescope.sources.job_plan import JobOptions, JobPlan, NeededFile, not_cached
from saescope.sources.layouts import SaeLocation
from saescope.sources.machine import free_disk, free_memory, show_bytes
from saescope.sources.references import name_in_catalog
from saescope.sources.sae_width import width_of_size, widths_in_file
from saescope.sources.saes import SaeSource, open_sae, sae_name_of

_ONE_TOKEN = 500  # bytes of results per token beside its features: measured
_ONE_FEATURE = 20
_ASSUMED_K = 64  # features per token of an SAE with thresholds


def plan_job(options: JobOptions) -> JobPlan:
    """Look up what a job needs.

    Raises SourceError if the model or SAE cannot be found, or if they do not belong together.
    """
    options = replace(options, offline=is_offline(options.offline))
    sae = _sae_needs(options)
    model = _model_needs(options, last=max(sae.layers))
    _refuse_other_width(options, model, sae)
    needed = (*model.needed, *sae.needed)
    budget = options.budget
    if budget is None and options.device != "cuda":
        budget = free_memory()
    download_folder = _download_folder(needed)
    sizes, flop_per_token = None, None
    if model.sizes is not None:
        sizes = _job_sizes(options, model, model.sizes, sae)
        flop_per_token = _flop_per_token(model.sizes, sae)
    plan = JobPlan(
        options=options,
        layers=sae.layers,
        dtype=model.dtype,
        needed=needed,
        download_folder=download_folder,
        disk_free=free_disk(download_folder),
        budget=budget,
        sizes=sizes,
        flop_per_token=flop_per_token,
        unknown=(*model.unknown, *sae.unknown),
    )
    if plan.fits_disk:
        return plan
    return replace(plan, disk_suggestions=_disk_suggestions(plan, model, sae))


@dataclass(frozen=True)
class _SaeNeeds:
    """Files of the requested layers' SAEs, and their number of features if known."""

    layers: tuple[int, ...]
    needed: tuple[NeededFile, ...]
    release: Release | None
    d_sae: int | None
    k: int | None = None
    unknown: tuple[str, ...] = ()
    widths: tuple[tuple[int, ...], ...] = ()
    "For each layer, what may be d_model, from configs and sizes; empty if they do not tell."


@dataclass(frozen=True)
class _ModelNeeds:
    """A model's files up to the last layer; `sizes` is None if some of them are unknown."""

    needed: tuple[NeededFile, ...] = ()
    contents: Contents | None = None
    sizes: ModelSizes | None = None
    dtype: str = "float32"
    unknown: tuple[str, ...] = ()


def _sae_needs(options: JobOptions) -> _SaeNeeds:
    release = find_release(name_in_catalog(options.sae))
    try:
        source = open_sae(options.sae, k=options.k, offline=options.offline)
    except NotCachedError:
        if release is None:
            raise
        return _release_needs(options, release)
    if release is not None and options.offline:
        return _release_needs(options, release, source.files)

    files = source.files
    layers = source.choose_layers(source.layers if options.layers == "all" else options.layers)
    locations = [source.locate(layer) for layer in layers]
    weights = [location.weights for location in locations]
    configs = [location.config for location in locations if location.config]
    names = dict.fromkeys(weights + configs)
    needed = tuple(NeededFile(files.name, files, files.entry(name)) for name in names)
    release = release or find_release(files.name)
    known_name = release or sae_name_of(files)
    d_sae = max(location.d_sae or 0 for location in locations) or None
    if known_name is not None:
        d_sae = known_name.d_sae
    widths = tuple(_sae_widths(files, location, d_sae) for location in locations)
    return _SaeNeeds(layers, needed, release, d_sae, source.k, widths=widths)


def _sae_widths(files: Files, location: SaeLocation, d_sae: int | None) -> tuple[int, ...]:
    """What may be d_model of an SAE, without opening its weights."""
    entry = files.entry(location.weights)
    if entry.have:
        widths = widths_in_file(files.path(location.weights))
        if widths:
            return widths
    if location.d_model is not None:
        return (location.d_model,)
    if location.format == "qwen-scope" and d_sae and entry.bytes:
        width = width_of_size(entry.bytes, d_sae)
        return () if width is None else (width,)
    return ()


def _refuse_other_width(options: JobOptions, model: _ModelNeeds, sae: _SaeNeeds) -> None:
    """Raise SourceError if an SAE reads residuals of another width than the model has."""
    if model.contents is None:
        return
    d_model = int(model.contents.config.text.hidden_size)
    for layer, widths in zip(sae.layers, sae.widths, strict=False):
        if widths and d_model not in widths:
            raise SourceError(
                f"SAE {options.sae} layer {layer} reads residuals {min(widths)} wide, "
                f"{options.model} has {d_model}: they do not belong together"
            )


def _release_needs(options: JobOptions, release: Release, files: Files | None = None) -> _SaeNeeds:
    """What the catalog says of a release whose files are not all in the cache."""
    cached = files.names() if files else frozenset()
    files = files or open_files(release.repo, offline=True)
    every_layer = tuple(range(release.n_layers))
    locations = tuple(
        SaeLocation("qwen-scope", layer_file(layer), None, HookPoint(layer))
        for layer in every_layer
    )
    source = SaeSource(files, locations, release.k, release.model)
    layers = source.choose_layers(every_layer if options.layers == "all" else options.layers)
    needed, missing = [], []
    for name in map(layer_file, layers):
        if name in cached:
            needed.append(NeededFile(release.repo, files, files.entry(name)))
        else:
            entry = FileEntry(name, release.layer_bytes, have=False)
            needed.append(NeededFile(release.repo, None, entry))
            missing.append(name)
    unknown: tuple[str, ...] = ()
    if missing:
        unknown = (f"{release.repo}: {not_cached(missing, 'layer')}; sizes are from the catalog",)
    return _SaeNeeds(layers, tuple(needed), release, release.d_sae, release.k, unknown)


def _model_needs(options: JobOptions, last: int) -> _ModelNeeds:
    """The files and tensors that the output of layer `last` depends on."""
    try:
        files = open_files(options.model, offline=options.offline)
        reason = _unknown_reason(files)
        if reason:
            return _ModelNeeds(_entries(files, _known_names(files)), unknown=(reason,))
        config = read_config(files)
    except NotCachedError:
        reason = "is not in the local cache: its files and sizes are not known offline"
        return _ModelNeeds(unknown=(f"{options.model} {reason}",))
    requested: DType = options.dtype
    contents = Contents.open(files, choose_dtype(requested, config.text), config)
    n_layers = config.text.num_hidden_layers
    if last >= n_layers:
        raise SourceError(f"{files.name} has layers 0-{n_layers - 1}, not {last}")
    dtype = str(contents.dtype).removeprefix("torch.")
    needed = _entries(files, file_names(contents, last))
    sizes = ModelSizes(contents, last, on_device=options.device != "cpu")
    unsized = [file.entry.name for file in needed if file.entry.bytes is None]
    if unsized and options.offline:
        line = f"{files.name}: {not_cached(unsized, 'shard')}, sizes are not known offline"
        return _ModelNeeds(needed, contents, None, dtype, (line,))
    if unsized:  # a mirror that tells no sizes
        line = f"{files.name}: the hub does not tell the size of {', '.join(unsized)}"
        return _ModelNeeds(needed, contents, sizes, dtype, (line,))
    return _ModelNeeds(needed, contents, sizes, dtype)


def _unknown_reason(files: Files) -> str:
    """Why nothing is known of the tensors without fetching weights; empty if they are known."""
    if not isinstance(files, HubFiles):
        return ""
    gguf = gguf_name(files)
    if gguf is not None and not files.entry(gguf).have:
        return f"{files.name}: the sizes inside {gguf} are known once it is fetched"
    if gguf is None and files.offline and not files.names() & {SINGLE, INDEX}:
        return f"{files.name}: its weights are not in the local cache, sizes are not known offline"
    return ""


def _known_names(files: Files) -> list[str]:
    gguf = gguf_name(files)
    return [gguf] if gguf is not None else sorted(files.names() & {CONFIG})


def _entries(files: Files, names: Sequence[str]) -> tuple[NeededFile, ...]:
    return tuple(NeededFile(files.name, files, _entry(files, name)) for name in names)


def _entry(files: Files, name: str) -> FileEntry:
    if isinstance(files, HubFiles) and files.offline and name not in files.names():
        return FileEntry(name, None, have=False)
    return files.entry(name)


def _job_sizes(
    options: JobOptions, needs: _ModelNeeds, model: ModelSizes, sae: _SaeNeeds
) -> JobSizes:
    d_model = int(model.config.hidden_size)
    d_sae = _d_sae(sae, d_model)
    value_bytes = model.contents.dtype.itemsize
    tokens = _batch_tokens(options, max_length(model.config))
    widths, widest = model.activation_widths()
    n_layers, k = len(sae.layers), sae.k or _ASSUMED_K
    return JobSizes(
        embedding=model.embedding(),
        blocks=model.blocks(),
        rest=model.rest(),
        encoder=4 * d_sae * (d_model + 1),
        n_saes=n_layers,
        activations=activation_bytes(tokens, d_model, widths, widest, value_bytes),
        kept=value_bytes * tokens * d_model,
        encode_block=min(ENCODE_BLOCK, 4 * d_sae * tokens),
        rows=tokens,
        tokenizer=TOKENIZER_FACTOR * _tokenizer_bytes(needs),
        packed_head=model.packed_head(),
        on_device=options.device != "cpu",
        results=(options.tokens or 0) * (_ONE_TOKEN + _ONE_FEATURE * k),
    )


def _batch_tokens(options: JobOptions, longest_possible: int) -> int:
    """Tokens of the largest batch: a prompt longer than a batch has one of its own."""
    tokens = min(options.tokens or options.batch_tokens, options.batch_tokens)
    return max(tokens, min(options.longest or 0, longest_possible))


def _tokenizer_bytes(needs: _ModelNeeds) -> int:
    sizes = (file.entry.bytes or 0 for file in needs.needed if file.entry.name == "tokenizer.json")
    return sum(sizes)


def _d_sae(sae: _SaeNeeds, d_model: int) -> int:
    """The number of features: from a name or config, or else from the size of the file."""
    release = sae.release
    if release is not None and release.d_model != d_model:
        raise SourceError(
            f"SAE {release.repo} reads residuals {release.d_model} wide, "
            f"the model has {d_model}: they do not belong together"
        )
    if sae.d_sae is not None:
        return sae.d_sae
    values = (sae.needed[0].entry.bytes or 0) // 4
    return (values - d_model) // (2 * d_model + 1)


def _flop_per_token(model: ModelSizes, sae: _SaeNeeds) -> float:
    """Two operations per weight used, in blocks and encoders; attention scores are left out."""
    d_model = int(model.config.hidden_size)
    return 2 * (model.weights_per_token() + len(sae.layers) * _d_sae(sae, d_model) * d_model)


def _download_folder(needed: Sequence[NeededFile]) -> Path:
    """The hub's cache, or the folder of the first file if all files are local."""
    from huggingface_hub import constants

    local = [
        file.files.path(file.entry.name).parent
        for file in needed
        if file.files and not isinstance(file.files, HubFiles)
    ]
    if len(local) == len(needed):
        return local[0]
    return Path(constants.HF_HUB_CACHE)


def _disk_suggestions(plan: JobPlan, model: _ModelNeeds, sae: _SaeNeeds) -> tuple[str, ...]:
    """Changes that make the job fit the disk."""
    lines = []
    layer_bytes = max((file.entry.missing for file in sae.needed), default=0)
    model_bytes = sum(file.entry.missing for file in model.needed)
    n_layers = len(sae.layers)
    if n_layers > 1 and layer_bytes:
        fitting = (plan.disk_free - model_bytes) // layer_bytes
        if fitting > 0:
            size = show_bytes(layer_bytes)
            lines.append(f"ask for at most {fitting} of the {n_layers} layers ({size} each)")
    if not lines:
        deepest = _deepest_layer(plan.disk_free - layer_bytes, model, max(sae.layers))
        if deepest is not None:
            lines.append(f"ask for one layer up to {deepest}: fewer shards are needed")
    excess = show_bytes(plan.download_bytes - plan.disk_free)
    return (*lines, f"free {excess}, or set HF_HOME to a folder on another disk for the cache")


def _deepest_layer(free_bytes: int, model: _ModelNeeds, last: int) -> int | None:
    """The last layer below `last` whose shards fit, or None."""
    contents = model.contents
    if contents is None:
        return None
    for layer in range(last - 1, -1, -1):
        entries = [_entry(contents.files, name) for name in file_names(contents, layer)]
        if sum(entry.missing for entry in entries) <= free_bytes:
            return layer
    return None
