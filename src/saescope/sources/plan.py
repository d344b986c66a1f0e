"""What a job would fetch, keep on disk and hold in memory, and whether that fits this machine. Fetches no weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from saescope.errors import NotCachedError, SourceError
from saescope.sources.budget import ENCODE_BLOCK, JobSizes, activation_bytes
from saescope.sources.catalog import Release, find_release, layer_file
from saescope.sources.checkpoint import Checkpoint, DecoderConfig, TensorInfo, open_checkpoint
from saescope.sources.files import FileEntry, Files, HubFiles, is_offline, open_files
from saescope.sources.hook_points import HookPoint
from saescope.sources.job_plan import JobPlan, NeededFile, PlanRequest, counted
from saescope.sources.layouts import SaeLocation
from saescope.sources.machine import free_disk, free_memory, show_bytes
from saescope.sources.saes import SaeSource, open_sae, sae_name_of

_VALUE_BYTES = {"float32": 4, "bfloat16": 2}
_IN_HEADERS = {"float32": "F32", "bfloat16": "BF16"}


@dataclass(frozen=True)
class _Sae:
    """The wanted layers' files of an SAE, and its width."""

    layers: tuple[int, ...]
    needed: tuple[NeededFile, ...]
    release: Release | None
    d_sae: int | None
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Model:
    """The files and tensors of a model up to the last layer; tensors are None where only part of it is cached."""

    needed: tuple[NeededFile, ...] = ()
    checkpoint: Checkpoint | None = None
    tensors: Mapping[str, TensorInfo] | None = None
    unknown: tuple[str, ...] = ()


def plan_job(request: PlanRequest) -> JobPlan:
    """Look up what the job needs; raises SourceError where model or SAE cannot be found or do not belong together."""
    request = replace(request, offline=is_offline(request.offline))
    sae = _find_sae(request)
    model = _find_model(request, last=max(sae.layers))
    needed = (*model.needed, *sae.needed)
    config = model.checkpoint.config if model.checkpoint else None
    dtype = _compute_dtype(request.dtype, config)
    download_folder = _download_folder(needed)
    planned = JobPlan(
        request=request,
        layers=sae.layers,
        dtype=dtype,
        needed=needed,
        download_folder=download_folder,
        disk_free=free_disk(download_folder),
        budget=request.budget or (None if request.device == "cuda" else free_memory()),
        sizes=_sizes(request, dtype, model, sae),
        flop_per_token=_flop_per_token(model, sae),
        unknown=(*model.unknown, *sae.unknown),
    )
    return (
        planned
        if planned.fits_disk
        else replace(planned, disk_instead=tuple(_less_disk(planned, model, sae)))
    )


def _find_sae(request: PlanRequest) -> _Sae:
    release = find_release(request.sae.partition("@")[0])
    source: SaeSource | None = None
    try:
        source = open_sae(request.sae, k=request.k, offline=request.offline)
    except NotCachedError:
        if release is None:
            raise
    if source is None or (release and request.offline):
        return _known_sae(request, release, source.files if source else None)
    layers = source.choose_layers(source.layers if request.layers == "all" else request.layers)
    places = [source.locate(layer) for layer in layers]
    names = dict.fromkeys(
        [*(place.weights for place in places), *(p.config for p in places if p.config)]
    )
    needed = tuple(
        NeededFile(source.files.name, source.files, source.files.entry(name)) for name in names
    )
    release = release or find_release(source.files.name)
    named = sae_name_of(source.files)
    by_name = release.d_sae if release else named.d_sae if named else None
    return _Sae(
        layers, needed, release, by_name or max(place.d_sae or 0 for place in places) or None
    )


def _known_sae(request: PlanRequest, release: Release | None, files: Files | None) -> _Sae:
    """What the catalog says of a release of which not everything is in the cache."""
    if release is None:
        raise SourceError(f"{request.sae} is not in the catalog")
    every = tuple(range(release.n_layers))
    places = tuple(SaeLocation("qwen-scope", layer_file(n), None, HookPoint(n)) for n in every)
    source = SaeSource(
        files or open_files(release.repo, offline=True), places, release.k, release.model
    )
    layers = source.choose_layers(every if request.layers == "all" else request.layers)
    names = files.names() if files else frozenset()
    needed = tuple(
        NeededFile(release.repo, files, files.entry(name))
        if files and name in names
        else NeededFile(release.repo, None, FileEntry(name, release.layer_bytes, have=False))
        for name in map(layer_file, layers)
    )
    missing = [file for file in needed if not file.entry.have]
    line = f"{release.repo}: {counted(missing, 'layer')} not in the local cache; their size is the catalog's"
    return _Sae(layers, needed, release, release.d_sae, (line,) if missing else ())


def _find_model(request: PlanRequest, last: int) -> _Model:
    try:
        files = open_files(request.model, offline=request.offline)
        checkpoint = open_checkpoint(files)
    except NotCachedError:
        return _Model(
            unknown=(
                f"{request.model} is not in the local cache: its files and sizes are not known offline",
            )
        )
    n_layers = checkpoint.config.n_layers
    if last >= n_layers:
        raise SourceError(f"{files.name} has layers 0-{n_layers - 1}, not {last}")
    entries = [_entry(files, name) for name in checkpoint.file_names(last)]
    needed = tuple(NeededFile(files.name, files, entry) for entry in entries)
    lost = [entry.name for entry in entries if entry.bytes is None]
    if lost and not request.offline:  # a mirror that does not tell sizes
        line = f"{files.name}: the hub does not tell the size of {', '.join(lost)}"
        return _Model(needed, checkpoint, checkpoint.tensor_infos(last), (line,))
    if lost:
        line = f"{files.name}: {counted(lost, 'shard')} not in the local cache, sizes are not known offline"
        return _Model(needed, checkpoint, None, (line,))
    return _Model(needed, checkpoint, checkpoint.tensor_infos(last))


def _entry(files: Files, name: str) -> FileEntry:
    if isinstance(files, HubFiles) and files.offline and name not in files.names():
        return FileEntry(name, None, have=False)
    return files.entry(name)


def _compute_dtype(dtype: str, config: DecoderConfig | None) -> str:
    """As the engine chooses: what the checkpoint is stored in if that is bfloat16, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if config and config.dtype.endswith("bfloat16") else "float32"


def _sizes(request: PlanRequest, dtype: str, model: _Model, sae: _Sae) -> JobSizes | None:
    if model.checkpoint is None or model.tensors is None:
        return None
    config, value = model.checkpoint.config, _VALUE_BYTES[dtype]
    d_sae = _width(sae, config)
    blocks, embedding = [0] * (max(sae.layers) + 1), 0
    for name, block in model.checkpoint.needed_tensors(max(sae.layers)).items():
        if block is None:
            embedding += model.tensors[name].bytes
        else:
            blocks[block] += model.tensors[name].bytes
    stored = embedding + sum(blocks)
    as_stored = all(tensor.dtype == _IN_HEADERS[dtype] for tensor in model.tensors.values())
    width = (config.d_model, config.mlp, config.attention)
    return JobSizes(
        embedding=embedding,
        blocks=tuple(blocks),
        rest=max(0, (model.checkpoint.total_bytes or stored) - stored),
        encoder=4 * d_sae * (config.d_model + 1),
        n_saes=len(sae.layers),
        activations=activation_bytes(request.batch_tokens, *width, value),
        kept=value * request.batch_tokens * config.d_model,
        encode_block=min(ENCODE_BLOCK, 4 * d_sae * request.batch_tokens),
        rows=min(request.tokens or request.batch_tokens, request.batch_tokens),
        widening=value * sum(tensor.values for tensor in model.tensors.values()) / max(1, stored),
        mapped=as_stored and request.device == "cpu",
        on_device=request.device != "cpu",
    )


def _width(sae: _Sae, config: DecoderConfig) -> int:
    """The SAE's number of features: known by its name, or what its file's size comes to."""
    if sae.release and sae.release.d_model != config.d_model:
        raise SourceError(
            f"SAE {sae.release.repo} reads residuals {sae.release.d_model} wide, the model has {config.d_model}: "
            "they do not belong together"
        )
    return sae.d_sae or ((sae.needed[0].entry.bytes or 0) // 4 - config.d_model) // (
        2 * config.d_model + 1
    )


def _flop_per_token(model: _Model, sae: _Sae) -> float | None:
    """Two operations for every weight a token meets in the blocks and the encoders; attention scores are left out."""
    if model.checkpoint is None or model.tensors is None:
        return None
    config = model.checkpoint.config
    blocks = model.checkpoint.needed_tensors(max(sae.layers)).items()
    values = sum(
        model.tensors[name].values * (config.experts_used if ".experts." in name else 1.0)
        for name, block in blocks
        if block is not None
    )
    return 2 * (values + len(sae.layers) * _width(sae, config) * config.d_model)


def _download_folder(needed: Sequence[NeededFile]) -> Path:
    """Where files are fetched to: the hub's cache, or beside local ones where all are."""
    from huggingface_hub import constants

    local = [
        f.files.path(f.entry.name).parent
        for f in needed
        if f.files and not isinstance(f.files, HubFiles)
    ]
    return local[0] if len(local) == len(needed) else Path(constants.HF_HUB_CACHE)


def _less_disk(plan: JobPlan, model: _Model, sae: _Sae) -> list[str]:
    """What of the job would fit the disk."""
    layer = max((file.entry.missing for file in sae.needed), default=0)
    lines = []
    if len(sae.layers) > 1 and layer:
        room = (plan.disk_free - sum(file.entry.missing for file in model.needed)) // layer
        if room > 0:
            lines.append(
                f"ask for at most {room} of the {len(sae.layers)} layers ({show_bytes(layer)} each)"
            )
    if not lines and (last := _deepest(plan.disk_free - layer, model, max(sae.layers))) is not None:
        lines.append(f"ask for one layer up to {last}: fewer shards are needed")
    more = show_bytes(plan.download_bytes - plan.disk_free)
    return [
        *lines,
        f"free {more}, or keep the cache on another disk: HF_HOME=/another/disk saescope fetch …",
    ]


def _deepest(room: int, model: _Model, last: int) -> int | None:
    """The last layer below this one whose shards fit."""
    if model.checkpoint is None:
        return None
    files = model.checkpoint.files
    for layer in range(last - 1, -1, -1):
        if sum(_entry(files, name).missing for name in model.checkpoint.file_names(layer)) <= room:
            return layer
    return None
