"""Write a run: collect batches beside its output path, then publish it in one rename.

Until then it is the folder `.NAME.partial`, with one file per finished batch and layer. Starting
the same job again resumes from there. One writer at a time: a second one of the same job waits and
finds the run published.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from saescope.errors import RunError
from saescope.sources.locks import Note, one_writer
from saescope.sources.prompts import PromptSet
from saescope.store import tables
from saescope.store.arrays import Bools, Float32s, Indices
from saescope.store.atomic import (
    clear,
    disk_errors,
    partial_path,
    publish,
    remove_empty,
    write_then_rename,
)
from saescope.store.manifest import DIGEST, MANIFEST, SINKS_ACROSS_LAYERS, SIZES, digest_of
from saescope.store.masking import Magnitudes, Masking
from saescope.store.run_positions import any_layer, join_sinks
from saescope.store.runs import Job, Run
from saescope.store.sae_fit import MeasureFit, positions_of, sample_order
from saescope.store.tables import LayerFeatures, PromptResids

_SAMPLE = "sample"  # name of the sampled residuals in the archive of a batch
Archive = Mapping[str, npt.NDArray[Any]]
Tokens = Sequence[Sequence[tuple[int, str]]]


@final
class RunWriter:
    """Collects a job's batches beside the output path, then publishes them as a run."""

    def __init__(self, out: Path, job: Job) -> None:
        self.out = out
        self.job = job
        self._partial = partial_path(out)

    def published(self) -> Run | None:
        """Return the published run of this job, or None.

        Raises RunError if the path is taken.
        """
        if not self.out.exists():
            return None
        if not (self.out / MANIFEST).is_file():
            raise RunError(f"{self.out} exists and is not a run: choose another path")
        run = Run.open(self.out)
        if run.manifest["fingerprint"] != self.job.fingerprint:
            raise RunError(f"{self.out} holds another job's run: choose another path or remove it")
        return run

    @contextmanager
    def alone(self, note: Note | None = None) -> Iterator[Run | None]:
        """Hold the right to write here; yields the job's run if it is published already.

        `note` gets a line if another process or thread is writing the same run: then this waits.
        Raises ResourceError if another job's run is being written here.
        """
        run = self.published()
        if run is not None and not self._partial.exists():
            yield run  # nothing to write, and no need for a lock
            return
        with one_writer(self.out, self.job.fingerprint, note):
            run = self.published()
            if run is not None:  # what a kill between publishing and clearing left
                clear(self._partial)
            yield run

    @contextmanager
    def collecting(self) -> Iterator[set[tuple[int, int]]]:
        """Open the partial folder and yield the (batch, layer) pairs that are already there.

        If the block fails, finished batches stay for the next attempt. If no batch is finished,
        the folder is removed.
        """
        created = [parent for parent in self.out.parents if not parent.exists()]
        with one_writer(self.out, self.job.fingerprint):
            with self._disk():
                self._resume_or_clear()
                finished = self._finished_units()
            try:
                yield finished
            except BaseException:
                if not self._batch_files():
                    clear(self._partial)
                    remove_empty(created)
                raise

    def spill_folder(self) -> Path:
        """Create a folder for intermediate results; it is removed with the partial folder."""
        folder = self._partial / "spill"
        folder.mkdir(exist_ok=True)
        return folder

    def put(
        self,
        number: int,
        layer: int,
        features: LayerFeatures,
        resid: PromptResids,
        sample: Float32s | None = None,
    ) -> None:
        """Store one layer of one finished batch; `sample`: residuals of its `sample_tokens`."""
        arrays = _arrays(features) | _arrays(resid)
        if sample is not None:
            arrays[_SAMPLE] = sample
        archive = io.BytesIO()
        np.savez(archive, **arrays)
        path = self._batch_path(number, layer)
        with self._disk():
            write_then_rename(path, archive.getbuffer(), durable=False)

    def publish(
        self,
        sets: Sequence[PromptSet],
        tokens: Tokens,
        batches: Sequence[Sequence[int]],
        record: Mapping[str, Any],
        measure_fit: MeasureFit | None = None,
    ) -> Run:
        """Write the tables in prompt order and the manifest, then rename.

        `tokens` holds the (id, text) of every token of every prompt; `batches` lists, per batch,
        the prompt indices in batch order. `record` goes into the manifest beside the job, and so
        do the figures of `measure_fit`.
        """
        with self._disk():
            folder = self._partial / "run"
            clear(folder)
            folder.mkdir()
            _write_prompts(folder, sets, tokens)
            prompt_order = np.array([prompt for batch in batches for prompt in batch])
            lengths = [len(row) for row in tokens]
            token_order = _token_order(prompt_order, lengths)
            scored = self._scored(token_order, lengths)
            sae_fit = {}
            for spec in self.job.saes:
                features = self._write_layer(
                    folder, spec.layer, spec.d_sae, prompt_order, token_order
                )
                sample = self._sample(spec.layer)
                if measure_fit is not None and sample is not None:
                    resid = sample[sample_order(token_order, lengths)]
                    sae_fit[str(spec.layer)] = asdict(
                        measure_fit(spec.layer, features, resid, scored)
                    )
            self._write_manifest(folder, {**record, "sae_fit": sae_fit})
            publish(folder, self.out)
            clear(self._partial)
        return Run.open(self.out)

    def _resume_or_clear(self) -> None:
        mark = self._partial / "job"
        if mark.is_file() and mark.read_text() == self.job.fingerprint:
            return
        clear(self._partial)
        self._partial.mkdir(parents=True)
        mark.write_text(self.job.fingerprint)

    def without_peaks(self, units: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
        """Return which of these (batch, layer) pairs an earlier version stored, without peaks."""
        lacking = set()
        for number, layer in units:
            with np.load(self._batch_path(number, layer), allow_pickle=False) as archive:
                if "peaks" not in archive:
                    lacking.add((number, layer))
        return lacking

    def _batch_path(self, number: int, layer: int) -> Path:
        return self._partial / f"layer{layer}-batch{number:06d}.npz"

    def _finished_units(self) -> set[tuple[int, int]]:
        units = set()
        for spec in self.job.saes:
            for path in self._batch_files(spec.layer):
                if not _is_whole(path):  # cut off, such as by a power failure
                    path.unlink()
                    continue
                number = path.stem.rpartition("-batch")[2]
                units.add((int(number), spec.layer))
        return units

    def _batch_files(self, layer: int | str = "*") -> list[Path]:
        return sorted(self._partial.glob(f"layer{layer}-batch*.npz"))

    def _write_layer(
        self, folder: Path, layer: int, d_sae: int, prompt_order: Indices, token_order: Indices
    ) -> LayerFeatures:
        with ExitStack() as stack:
            paths = self._batch_files(layer)
            archives: list[Archive] = [
                stack.enter_context(np.load(path, allow_pickle=False)) for path in paths
            ]
            joined = LayerFeatures.joined([_features(archive) for archive in archives])
            features = joined.take(np.argsort(token_order))
            resid = PromptResids(
                *(_in_order(archives, name, prompt_order) for name in tables.RESID_COLUMNS)
            )
        _write(folder / tables.features_name(layer), tables.features_table(features, d_sae))
        _write(folder / tables.resid_name(layer), tables.resid_table(resid))
        return features

    def _scored(self, token_order: Indices, lengths: Sequence[int]) -> Bools:
        """Return which tokens count under the default masking, from what all layers show."""
        pos, masking = positions_of(lengths), Masking()
        layers = ((s.layer, self._magnitudes(s.layer, token_order)) for s in self.job.saes)
        sinks = any_layer(len(pos), join_sinks(pos, layers, masking).values())
        return masking.positions(pos, sinks).scored

    def _magnitudes(self, layer: int, token_order: Indices) -> Magnitudes:
        """Return a layer's norms and peaks in prompt order; no more of its archives is read."""
        norms, peaks = [], []
        for path in self._batch_files(layer):
            with np.load(path, allow_pickle=False) as archive:
                norms.append(archive["norms"])
                peaks += [archive["peaks"]] if "peaks" in archive else []
        in_order = np.argsort(token_order)
        return Magnitudes(
            np.concatenate(norms)[in_order],
            np.concatenate(peaks)[in_order] if peaks else None,
        )

    def _sample(self, layer: int) -> Float32s | None:
        """Return a layer's sampled residuals in batch order.

        None if batches of an earlier version, which stored none, were resumed.
        """
        samples = []
        for path in self._batch_files(layer):
            with np.load(path, allow_pickle=False) as archive:
                if _SAMPLE not in archive:
                    return None
                samples.append(archive[_SAMPLE])
        return np.concatenate(samples)

    def _write_manifest(self, folder: Path, record: Mapping[str, Any]) -> None:
        paths = sorted(folder.iterdir())
        manifest = {
            "schema": tables.SCHEMA_VERSION,
            "fingerprint": self.job.fingerprint,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "job": asdict(self.job),
            SINKS_ACROSS_LAYERS: True,
            **record,
            "tables": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths},
            SIZES: {path.name: path.stat().st_size for path in paths},
        }
        # The digest is that of the manifest as JSON holds it: with keys that are strings.
        manifest[DIGEST] = digest_of(json.loads(json.dumps(manifest)))
        text = json.dumps(manifest, ensure_ascii=False, indent=1)
        (folder / MANIFEST).write_text(text, encoding="utf-8")

    def _disk(self) -> AbstractContextManager[None]:
        advice = (
            "nothing was published; free space or choose another path, and the same command resumes"
        )
        return disk_errors(f"the run {self.out}", advice)


def _is_whole(path: Path) -> bool:
    """Return whether the checksums of a batch's archive hold."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, NotImplementedError):
        return False


def _arrays(batch: LayerFeatures | PromptResids) -> dict[str, Any]:
    """Return the arrays by name, without those that are None."""
    arrays = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: array for name, array in arrays.items() if array is not None}


def _features(archive: Archive) -> LayerFeatures:
    names = [field.name for field in fields(LayerFeatures) if field.name in archive]
    return LayerFeatures(**{name: archive[name] for name in names})


def _token_order(prompt_order: Indices, lengths: Sequence[int]) -> Indices:
    """Return the rows of the token table in batch order."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return np.concatenate([np.arange(starts[p], starts[p + 1]) for p in prompt_order])


def _in_order(archives: Sequence[Archive], name: str, order: Indices) -> npt.NDArray[Any]:
    batched = np.concatenate([archive[name] for archive in archives])
    ordered = np.empty_like(batched)
    ordered[order] = batched
    return ordered


def _write_prompts(folder: Path, sets: Sequence[PromptSet], tokens: Tokens) -> None:
    prompts = [prompt for group in sets for prompt in group.prompts]
    n_tokens = [len(row) for row in tokens]
    _write(folder / tables.PROMPTS_NAME, tables.prompts_table(prompts, n_tokens))
    _write(folder / tables.TOKENS_NAME, tables.tokens_table(tokens))


def _write(path: Path, table: pa.Table) -> None:
    # pyarrow would read a relative path such as a:b/c as the address of a file system.
    pq.write_table(table, path.absolute(), compression="zstd")
