"""The pipeline: prompts → tokens → residuals → sparse features → run on disk."""

import platform
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saescope.engine.batches import BATCH_TOKENS, BatchPlan, plan_batches
from saescope.engine.encode import encode_batch
from saescope.engine.forward import Unit, compute_residuals
from saescope.engine.lm import LM
from saescope.engine.matmul_kernels import NATIVE, KernelMode, Kernels, choose_kernels
from saescope.engine.numerics import library_versions, numerics
from saescope.engine.reconstruction import fit_measurer
from saescope.engine.residual import is_edited
from saescope.engine.sae import Sae, check_fit
from saescope.engine.text_ids import special_ids
from saescope.engine.tokens import TokenText
from saescope.errors import SourceError
from saescope.sources.locks import Note
from saescope.sources.prompts import PromptSet, fingerprint
from saescope.sources.stored_files import file_records
from saescope.store.arrays import Float32s
from saescope.store.runs import Job, Run
from saescope.store.sae_fit import sample_tokens
from saescope.store.tables import LayerFeatures, PromptResids
from saescope.store.writer import RunWriter
from saescope.version import __version__

Progress = Callable[[int, int], None]
_BYTES_PER_TOKEN = 4


def extract(
    lm: LM,
    saes: Sequence[Sae],
    sets: Sequence[PromptSet],
    out: str | Path,
    *,
    batch_tokens: int = BATCH_TOKENS,
    errors: bool = False,
    command: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    kernels: Kernels | None = None,
    hash_files: bool = False,
    note: Note | None = None,
) -> Run:
    """Compute the features of all prompts and publish them as the run `out`.

    If `out` already holds the same job's run, it is returned. A resumed job skips the (batch,
    layer) pairs already stored. `errors` also stores the norm of each token's reconstruction error,
    which needs SAEs with decoders. `command` goes into the manifest. `progress` is called with two
    numbers: tokens × layers done, and their total. `kernels`: matmul kernels; None chooses them for
    this machine (`choose_kernels`). `hash_files` also records the SHA-256 of large local files.
    `note` gets a line before this waits for another writer of the same run. Raises SourceError,
    PromptError, RunError or ResourceError. Nothing is published on error.

    >>> import tempfile, saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", layers=[2])
    >>> sae = ss.load_sae("saescope-tiny-sae", layer=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = ss.extract(lm, [sae], ss.texts(["A short text."]), f"{folder}/run")
    ...     run.features(2).counts  # features that fire on each of 6 tokens
    array([32, 32, 32, 32, 32, 32], dtype=int32)
    """
    _refuse_edits(lm)
    check_fit(lm, saes)
    this_job = job(lm, saes, sets, batch_tokens, errors=errors, kernels=kernels)
    writer = RunWriter(Path(out), this_job)
    with writer.alone(note) as published:
        if published is not None:
            return published
        record = {"command": command or {"verb": "extract", "request": {}}}
        return _collect(writer, lm, saes, sets, record, progress, hash_files)


def _collect(
    writer: RunWriter,
    lm: LM,
    saes: Sequence[Sae],
    sets: Sequence[PromptSet],
    record: Mapping[str, Any],
    progress: Progress | None,
    hash_files: bool,
) -> Run:
    """Compute what the writer does not hold yet, and publish."""
    prompts = [prompt for group in sets for prompt in group.prompts]
    plan = plan_batches(lm, prompts, writer.job.batch_tokens)
    kernels, errors = writer.job.numerics["kernels"], writer.job.errors
    with writer.collecting() as finished, ThreadPoolExecutor(1) as pool:
        finished -= writer.without_peaks(finished)
        files = pool.submit(_file_records, lm, saes, hash_files)
        count = _counter(plan, len(saes), finished, progress)
        for done in compute_features(
            lm, saes, plan, finished, errors=errors, spill=writer.spill_folder(), kernels=kernels
        ):
            writer.put(done.batch, done.layer, done.features, done.resids, done.sample)
            count(done.batch)
        tokens = _tokens_with_text(lm, plan)
        fit = fit_measurer(saes, plan.lengths)
        record = {
            **record,
            **_manifest_record(lm, saes, plan, kernels),
            "files": files.result(),
        }
        return writer.publish(sets, tokens, plan.prompt_orders, record, fit)


def _counter(
    plan: BatchPlan, n_layers: int, finished: Iterable[Unit], progress: Progress | None
) -> Callable[[int], None]:
    """Return a function that counts one layer of a batch as done, in tokens × layers."""
    tokens = [sum(plan.prompt_lengths(index)) for index in range(len(plan.batches))]
    n_done = sum(tokens[batch] for batch, _ in finished)

    def count(batch: int) -> None:
        nonlocal n_done
        n_done += tokens[batch]
        if progress:
            progress(n_done, sum(tokens) * n_layers)

    return count


def _refuse_edits(lm: LM) -> None:
    if is_edited(lm):
        raise SourceError(
            f"cannot extract inside steered(): a run must describe the unedited model "
            f"({lm.spec.repo})"
        )


def job(
    lm: LM,
    saes: Sequence[Sae],
    sets: Sequence[PromptSet],
    batch_tokens: int,
    *,
    errors: bool = False,
    kernels: Kernels | None = None,
) -> Job:
    """Return the job that identifies a run; its fingerprint, in the manifest, tells runs apart."""
    chosen = choose_job_kernels(lm, _estimated_tokens(sets), kernels)
    return Job(
        model=lm.spec,
        saes=tuple(sorted((sae.spec for sae in saes), key=lambda spec: spec.layer)),
        prompts=fingerprint(sets),
        dtype=_dtype_name(lm),
        device=lm.device.type,
        batch_tokens=batch_tokens,
        errors=errors,
        versions=library_versions(),
        numerics={**numerics(lm.device), "kernels": chosen, "shares_prefixes": lm.shares_prefixes},
    )


def _estimated_tokens(sets: Sequence[PromptSet]) -> int:
    """Return about how many tokens the prompts have, which decides whether kernels are measured."""
    prompts = [prompt for group in sets for prompt in group.prompts]
    contents = [
        prompt.text or "".join(str(turn.content or "") for turn in prompt.messages or ())
        for prompt in prompts
    ]
    return sum(len(text.encode("utf-8", "replace")) for text in contents) // _BYTES_PER_TOKEN


def choose_job_kernels(lm: LM, n_tokens: int, requested: Kernels | None = None) -> Kernels:
    """Return the requested matmul kernels, or what `choose_kernels` finds for so many tokens."""
    matrices = [p for p in lm.blocks.parameters() if p.ndim > 1]
    flops = 2 * n_tokens * sum(matrix.numel() for matrix in matrices)
    return choose_kernels((_dtype_name(lm), "float32"), lm.device.type, flops, requested)


@dataclass(frozen=True)
class BatchFeatures:
    """Features and residuals of one batch at one layer, in `BatchPlan.prompt_order`.

    `sample` holds the residuals of the batch's tokens that are among the run's `sample_tokens`: on
    these, `publish` measures how well the SAE fits.
    """

    batch: int
    layer: int
    features: LayerFeatures
    resids: PromptResids
    sample: Float32s


def compute_features(
    lm: LM,
    saes: Sequence[Sae],
    plan: BatchPlan,
    finished: Container[Unit] = (),
    *,
    errors: bool = False,
    spill: Path | None = None,
    kernels: Kernels = NATIVE,
) -> Iterator[BatchFeatures]:
    """Yield the features and residuals of every batch and layer.

    (batch, layer) pairs in `finished` are skipped. With `errors`, features include the norm of the
    reconstruction error. `spill`: folder for the residuals that a streamed model keeps between its
    layers; None keeps them in memory. `kernels`: matmul kernels of the model and the SAEs.
    """
    check_fit(lm, saes)
    sae_of = {sae.spec.layer: sae for sae in saes}
    mode = KernelMode(kernels)
    sample = sample_tokens(plan.lengths)
    for residuals in compute_residuals(lm, sorted(sae_of), plan, finished, spill, kernels):
        lengths = plan.prompt_lengths(residuals.batch)
        indices = plan.residual_indices(residuals.batch)
        with mode:
            features, resids = encode_batch(
                sae_of[residuals.layer], residuals.resid, indices, lengths, errors
            )
        sampled_tokens = np.flatnonzero(np.isin(plan.token_indices(residuals.batch), sample))
        sampled_indices = sampled_tokens if indices is None else indices.numpy()[sampled_tokens]
        sampled_resid = residuals.resid[
            torch.from_numpy(sampled_indices).to(residuals.resid.device)
        ]
        yield BatchFeatures(
            residuals.batch, residuals.layer, features, resids, sampled_resid.float().cpu().numpy()
        )


def _tokens_with_text(lm: LM, plan: BatchPlan) -> list[list[tuple[int, str]]]:
    text = TokenText(lm.tokenizer)
    return [[(token, text(token)) for token in ids] for ids in plan.token_ids]


def _special_tokens(lm: LM, plan: BatchPlan) -> list[int]:
    """Return the ids of the run's tokens that are no text, such as a BOS."""
    return sorted(special_ids(lm.tokenizer) & {token for ids in plan.token_ids for token in ids})


def _manifest_record(
    lm: LM,
    saes: Sequence[Sae],
    plan: BatchPlan,
    kernels: Kernels,
) -> dict[str, Any]:
    """Provenance fields of the manifest."""
    return {
        "inputs": {"model": lm.source, "saes": {str(sae.spec.layer): sae.source for sae in saes}},
        "saescope": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",
        "threads": torch.get_num_threads(),
        "streamed": lm.streamed is not None,
        "kernels": dict(kernels),
        "special_tokens": _special_tokens(lm, plan),
    }


def _file_records(lm: LM, saes: Sequence[Sae], hash_files: bool) -> dict[str, Any]:
    """Return what tells later whether the model's and the SAEs' files are still the same.

    `_collect` runs this in a thread, because it reads whole files.
    """
    return {
        "model": {"source": lm.source, "files": file_records(lm.files, hash_all=hash_files)},
        "saes": {
            str(sae.spec.layer): {
                "source": sae.files_source,
                "files": file_records(sae.files, hash_all=hash_files),
            }
            for sae in saes
        },
    }


def _dtype_name(lm: LM) -> str:
    return str(lm.dtype).removeprefix("torch.")
