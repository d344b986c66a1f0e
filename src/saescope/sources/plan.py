"""What a job would fetch, keep on disk and hold in memory. Fetches no weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from saescope.errors import NotCachedError, SourceError
from saescope.sources.budget import ENCODE_BLOCK, JobSizes, activation_bytes
from saescope.sources.catalog import Release, find_release, layer_file
from saescope.sources.checkpoint import Checkpoint, DecoderConfig, TensorInfo, open_checkpoint
from saescope.sources.files import FileEntry, Files, HubFiles, is_offline, open_files
from saescope.sources.hook_points import HookPoint
from saescope.sources.job_plan import JobOptions, JobPlan, NeededFile, not_cached
from saescope.sources.layouts import SaeLocation
from saescope.sources.machine import free_disk, free_memory, show_bytes
from saescope.sources.references import name_in_catalog
from saescope.sources.saes import SaeSource, open_sae, sae_name_of

_VALUE_BYTES = {"float32": 4, "bfloat16": 2}
_HEADER_DTYPES = {"float32": "F32", "bfloat16": "BF16"}


def plan_job(options: JobOptions) -> JobPlan:
    """Look up what a job needs.

    Raises SourceError if the model or SAE cannot be found, or if they do not belong together.
    """
    options = replace(options, offline=is_offline(options.offline))
    sae = _sae_needs(options)
    model = _model_needs(options, last=max(sae.layers))
    needed = (*model.needed, *sae.needed)
    dtype = _compute_dtype(options.dtype, model.checkpoint)
    budget = options.budget
    if budget is None and options.device != "cuda":
        budget = free_memory()
    download_folder = _download_folder(needed)
    sizes, flop_per_token = None, None
    if model.decoder is not None:
        sizes = _job_sizes(options, dtype, model.decoder, sae)
        flop_per_token = _flop_per_token(model.decoder, sae)
    plan = JobPlan(
        options=options,
        layers=sae.layers,
        dtype=dtype,
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
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Decoder:
    """A model's tensors up to the last requested layer, and the block of each (None: embedding)."""

    checkpoint: Checkpoint
    tensors: Mapping[str, TensorInfo]
    block_of: Mapping[str, int | None]

    @property
    def config(self) -> DecoderConfig:
        """The decoder's sizes."""
        return self.checkpoint.config


@dataclass(frozen=True)
class _ModelNeeds:
    """A model's files up to the last layer; `decoder` is None if some of them are unknown."""

    needed: tuple[NeededFile, ...] = ()
    checkpoint: Checkpoint | None = None
    decoder: _Decoder | None = None
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
    if known_name is not None:
        return _SaeNeeds(layers, needed, release, known_name.d_sae)
    d_sae = max(location.d_sae or 0 for location in locations)
    return _SaeNeeds(layers, needed, release, d_sae or None)


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
    return _SaeNeeds(layers, tuple(needed), release, release.d_sae, unknown)


def _model_needs(options: JobOptions, last: int) -> _ModelNeeds:
    """The files and tensors that the output of layer `last` depends on."""
    try:
        files = open_files(options.model, offline=options.offline)
        checkpoint = open_checkpoint(files)
    except NotCachedError:
        reason = "is not in the local cache: its files and sizes are not known offline"
        return _ModelNeeds(unknown=(f"{options.model} {reason}",))
    n_layers = checkpoint.config.n_layers
    if last >= n_layers:
        raise SourceError(f"{files.name} has layers 0-{n_layers - 1}, not {last}")
    entries = [_entry(files, name) for name in checkpoint.file_names(last)]
    needed = tuple(NeededFile(files.name, files, entry) for entry in entries)
    unsized = [entry.name for entry in entries if entry.bytes is None]
    if unsized and options.offline:
        line = f"{files.name}: {not_cached(unsized, 'shard')}, sizes are not known offline"
        return _ModelNeeds(needed, checkpoint, None, (line,))
    decoder = _Decoder(checkpoint, checkpoint.tensor_infos(last), checkpoint.needed_tensors(last))
    if unsized:  # a mirror that tells no sizes
        line = f"{files.name}: the hub does not tell the size of {', '.join(unsized)}"
        return _ModelNeeds(needed, checkpoint, decoder, (line,))
    return _ModelNeeds(needed, checkpoint, decoder)


def _entry(files: Files, name: str) -> FileEntry:
    if isinstance(files, HubFiles) and files.offline and name not in files.names():
        return FileEntry(name, None, have=False)
    return files.entry(name)


def _compute_dtype(dtype: str, checkpoint: Checkpoint | None) -> str:
    """The engine's choice: bfloat16 if the checkpoint is stored in it, else float32."""
    if dtype != "auto":
        return dtype
    if checkpoint is not None and checkpoint.config.dtype.endswith("bfloat16"):
        return "bfloat16"
    return "float32"


def _job_sizes(options: JobOptions, dtype: str, model: _Decoder, sae: _SaeNeeds) -> JobSizes:
    config, value_bytes, tokens = model.config, _VALUE_BYTES[dtype], options.batch_tokens
    d_sae = _d_sae(sae, config)
    blocks, embedding = [0] * (max(sae.layers) + 1), 0
    for name, block in model.block_of.items():
        if block is None:
            embedding += model.tensors[name].bytes
        else:
            blocks[block] += model.tensors[name].bytes
    stored_bytes = embedding + sum(blocks)
    values = sum(tensor.values for tensor in model.tensors.values())
    stored_dtypes = {tensor.dtype for tensor in model.tensors.values()}
    total_bytes = model.checkpoint.total_bytes or stored_bytes
    return JobSizes(
        embedding=embedding,
        blocks=tuple(blocks),
        rest=max(0, total_bytes - stored_bytes),
        encoder=4 * d_sae * (config.d_model + 1),
        n_saes=len(sae.layers),
        activations=activation_bytes(
            tokens, config.d_model, config.mlp, config.attention, value_bytes
        ),
        kept=value_bytes * tokens * config.d_model,
        encode_block=min(ENCODE_BLOCK, 4 * d_sae * tokens),
        rows=min(options.tokens or tokens, tokens),
        widening=value_bytes * values / max(1, stored_bytes),
        mapped=options.device == "cpu" and stored_dtypes <= {_HEADER_DTYPES[dtype]},
        on_device=options.device != "cpu",
    )


def _d_sae(sae: _SaeNeeds, config: DecoderConfig) -> int:
    """The number of features: from a name or config, or else from the size of the file."""
    release, d_model = sae.release, config.d_model
    if release is not None and release.d_model != d_model:
        raise SourceError(
            f"SAE {release.repo} reads residuals {release.d_model} wide, "
            f"the model has {d_model}: they do not belong together"
        )
    if sae.d_sae is not None:
        return sae.d_sae
    values = (sae.needed[0].entry.bytes or 0) // 4
    return (values - d_model) // (2 * d_model + 1)


def _flop_per_token(model: _Decoder, sae: _SaeNeeds) -> float:
    """Two operations per weight used, in blocks and encoders; attention scores are left out."""
    weights = float(len(sae.layers) * _d_sae(sae, model.config) * model.config.d_model)
    for name, block in model.block_of.items():
        if block is None:
            continue
        share = model.config.experts_used if ".experts." in name else 1.0
        weights += model.tensors[name].values * share
    return 2 * weights


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
    other_disk = "HF_HOME=/another/disk saescope fetch …"
    return (*lines, f"free {excess}, or keep the cache on another disk: {other_disk}")


def _deepest_layer(free_bytes: int, model: _ModelNeeds, last: int) -> int | None:
    """The last layer below `last` whose shards fit, or None."""
    checkpoint = model.checkpoint
    if checkpoint is None:
        return None
    for layer in range(last - 1, -1, -1):
        entries = [_entry(checkpoint.files, name) for name in checkpoint.file_names(layer)]
        if sum(entry.missing for entry in entries) <= free_bytes:
            return layer
    return None
