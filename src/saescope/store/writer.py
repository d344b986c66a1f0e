"""Making a run: batches collect beside its final place, and it gets its name in one rename, whole or not at all.

While it is being made it is `.NAME.partial`, a file for every finished batch; the same job started again goes on from
there.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from saescope.errors import ResourceError, RunError
from saescope.sources.prompts import PromptSet
from saescope.store import tables
from saescope.store.runs import MANIFEST, Job, Run
from saescope.store.tables import LayerFeatures, PromptResids


@final
class RunWriter:
    """Collects a job's batches beside the final place, then publishes them as a run in one rename."""

    def __init__(self, out: Path, job: Job) -> None:
        self.out = out
        self.job = job
        self._partial = out.parent / f".{out.name}.partial"
        self._made_parent = not out.parent.exists()

    def published(self) -> Run | None:
        """The finished run of this very job, if it is there; raises RunError if something else is in the way."""
        if not self.out.exists():
            return None
        if not (self.out / MANIFEST).is_file():
            raise RunError(f"{self.out} exists and is no run: choose another --out")
        run = Run.open(self.out)
        if run.manifest["fingerprint"] != self.job.fingerprint:
            raise RunError(
                f"{self.out} holds another job's run: choose another --out, or remove it"
            )
        return run

    @contextmanager
    def collecting(self) -> Iterator[set[tuple[int, int]]]:
        """Open the partial directory and yield which layers of which batches are already there.

        Whatever ends the block early, what is finished stays for the next attempt; a directory without any is removed.
        """
        with self._disk():
            self._resume_or_clear()
            finished = {unit for spec in self.job.saes for unit in self._units(spec.layer)}
        try:
            yield finished
        except BaseException:
            if not self._finished():
                shutil.rmtree(self._partial, ignore_errors=True)
                if self._made_parent:
                    self.out.parent.rmdir()
            raise

    def _finished(self, layer: int | str = "*") -> list[Path]:
        return sorted(self._partial.glob(f"layer{layer}-batch*.npz"))

    def _units(self, layer: int) -> list[tuple[int, int]]:
        return [(int(path.stem.rpartition("-batch")[2]), layer) for path in self._finished(layer)]

    @property
    def spill(self) -> Path:
        """A folder for what the computation keeps on disk meanwhile; it goes with the partial directory."""
        folder = self._partial / "spill"
        folder.mkdir(exist_ok=True)
        return folder

    def remember(self, name: str, make: Callable[[], Mapping[str, Any]]) -> Any:
        """What `make` gave when this job was begun, which may have been in an earlier attempt; as JSON keeps it."""
        path = self._partial / f"{name}.json"
        with self._disk():
            if not path.is_file():
                temporary = path.with_suffix(".tmp")
                temporary.write_text(json.dumps(make()))
                temporary.replace(path)
            return json.loads(path.read_text())

    def put(self, number: int, layer: int, features: LayerFeatures, resid: PromptResids) -> None:
        """Keep one layer of one finished batch."""
        arrays = {
            field.name: array
            for part in (features, resid)
            for field in fields(part)
            if (array := getattr(part, field.name)) is not None
        }
        path = self._partial / f"layer{layer}-batch{number:06d}.npz"
        temporary = path.with_suffix(".tmp")
        with self._disk():
            try:
                with temporary.open("wb") as file:
                    np.savez(file, **arrays)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def publish(
        self,
        sets: Sequence[PromptSet],
        tokens: Sequence[Sequence[tuple[int, str]]],
        batches: Sequence[Sequence[int]],
        record: Mapping[str, Any],
    ) -> Run:
        """Order the batches' rows by prompt, write the tables and the manifest, and rename.

        `tokens` holds (id, text) of every token of every prompt; `batches` the prompts of every batch, in its row
        order; `record` is kept in the manifest beside the job.
        """
        with self._disk():
            staging = self._partial / "run"
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            self._write_prompts(staging, sets, tokens)
            of_prompts = np.array([p for batch in batches for p in batch])
            starts = np.concatenate([[0], np.cumsum([len(t) for t in tokens])])
            of_tokens = np.concatenate([np.arange(starts[p], starts[p + 1]) for p in of_prompts])
            for spec in self.job.saes:
                with ExitStack() as stack:
                    archives = [
                        stack.enter_context(np.load(path)) for path in self._finished(spec.layer)
                    ]
                    parts = [_features(archive) for archive in archives]
                    features = LayerFeatures.joined(parts).take(np.argsort(of_tokens))
                    _write(
                        staging / tables.features_name(spec.layer),
                        tables.features_table(features, spec.d_sae),
                    )
                    resid = PromptResids(
                        *(_in_order(archives, name, of_prompts) for name in tables.RESID_COLUMNS)
                    )
                    _write(staging / tables.resid_name(spec.layer), tables.resid_table(resid))
            self._write_manifest(staging, record)
            staging.rename(self.out)
            shutil.rmtree(self._partial)
        return Run.open(self.out)

    def _resume_or_clear(self) -> None:
        mark = self._partial / "job"
        if not (mark.is_file() and mark.read_text() == self.job.fingerprint):
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir(parents=True)
            mark.write_text(self.job.fingerprint)

    def _write_prompts(
        self, staging: Path, sets: Sequence[PromptSet], tokens: Sequence[Sequence[tuple[int, str]]]
    ) -> None:
        prompts = [prompt for group in sets for prompt in group.prompts]
        _write(
            staging / "prompts.parquet", tables.prompts_table(prompts, [len(row) for row in tokens])
        )
        _write(staging / "tokens.parquet", tables.tokens_table(tokens))

    def _write_manifest(self, staging: Path, record: Mapping[str, Any]) -> None:
        hashes = {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(staging.iterdir())
        }
        manifest = {
            "schema": tables.SCHEMA_VERSION,
            "fingerprint": self.job.fingerprint,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "job": asdict(self.job),
            **record,
            "tables": hashes,
        }
        with (staging / MANIFEST).open("w", encoding="utf-8") as file:
            json.dump(manifest, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResourceError(
                f"cannot write the run {self.out}: {error.strerror or error}; "
                "nothing was published; free space or choose another --out, and the same command goes on"
            ) from error


def _features(archive: Mapping[str, npt.NDArray[Any]]) -> LayerFeatures:
    return LayerFeatures(
        **{f.name: archive[f.name] for f in fields(LayerFeatures) if f.name in archive}
    )


def _in_order(
    archives: Sequence[Mapping[str, npt.NDArray[Any]]], name: str, order: npt.NDArray[np.intp]
) -> npt.NDArray[Any]:
    batched = np.concatenate([archive[name] for archive in archives])
    ordered = np.empty_like(batched)
    ordered[order] = batched
    return ordered


def _write(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, compression="zstd")
    with path.open("rb") as file:
        os.fsync(file.fileno())
