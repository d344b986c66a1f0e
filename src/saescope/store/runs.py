"""A run: one published, immutable directory of features with a manifest that says what made it.

While it is being made it lies beside its final place as `.NAME.partial`, a file for every finished batch; the same job
started again goes on from there. It gets its name in one rename, whole or not at all.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from saescope.errors import ResourceError, RunError
from saescope.sources.catalog import ModelSpec, SaeSpec
from saescope.sources.prompts import Prompt, PromptSet
from saescope.store import tables

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Job:
    """All that decides a run's content: two runs of one job on one machine hold the same bytes."""

    model: ModelSpec
    saes: tuple[SaeSpec, ...]
    prompts: str
    dtype: str
    device: str
    batch_tokens: int
    versions: Mapping[str, str]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every field and the schema's version."""
        text = json.dumps([tables.SCHEMA_VERSION, asdict(self)], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class LayerFeatures:
    """One layer's features of all tokens: norms (tokens,), acts and ids (tokens, k), strongest first."""

    norms: npt.NDArray[np.float32]
    acts: npt.NDArray[np.float32]
    ids: npt.NDArray[np.unsignedinteger[Any]]


@final
@dataclass(frozen=True)
class Run:
    """A published run, opened for reading."""

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Open a run directory; raises RunError if it is none, or of another schema."""
        path = Path(path)
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError(f"{path} is no run: it has no {MANIFEST}") from error
        except (OSError, ValueError) as error:
            raise RunError(f"{path / MANIFEST} cannot be read: {error}") from error
        schema = manifest.get("schema") if isinstance(manifest, dict) else None
        if schema != tables.SCHEMA_VERSION:
            raise RunError(
                f"{path} has schema {schema}, this saescope reads {tables.SCHEMA_VERSION}: make the run again"
            )
        if missing := {"fingerprint", "job", "tables"} - manifest.keys():
            raise RunError(f"{path / MANIFEST} is damaged: it has no {min(missing)}; make the run again")
        return cls(path, manifest)

    @cached_property
    def saes(self) -> dict[int, SaeSpec]:
        """The SAE of every layer."""
        return {spec["layer"]: SaeSpec(**spec) for spec in self.manifest["job"]["saes"]}

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers in this run, ascending."""
        return tuple(sorted(self.saes))

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """All prompts in order; chats come back as the text shown for them."""
        rows = self._read("prompts.parquet").to_pylist()
        return tuple(Prompt(id=r["id"], set=r["set"], text=r["text"], pair=r["pair"], split=r["split"]) for r in rows)

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """Names of the sets in order."""
        return tuple(dict.fromkeys(p.set for p in self.prompts))

    @cached_property
    def set_of_prompt(self) -> npt.NDArray[np.intp]:
        """Number of each prompt's set."""
        number = {name: i for i, name in enumerate(self.sets)}
        return np.array([number[p.set] for p in self.prompts], dtype=np.intp)

    @cached_property
    def _tokens(self) -> pa.Table:
        return self._read("tokens.parquet")

    @cached_property
    def token_prompt(self) -> npt.NDArray[np.int32]:
        """Number of each token's prompt."""
        return np.asarray(self._tokens["prompt"].to_numpy())

    @cached_property
    def token_pos(self) -> npt.NDArray[np.int32]:
        """Position of each token in its prompt."""
        return np.asarray(self._tokens["pos"].to_numpy())

    @cached_property
    def token_text(self) -> list[str]:
        """Each token as text."""
        return list(self._tokens["token"].to_pylist())

    @cached_property
    def token_id(self) -> npt.NDArray[np.int32]:
        """Each token's id in the vocabulary."""
        return np.asarray(self._tokens["token_id"].to_numpy())

    def features(self, layer: int) -> LayerFeatures:
        """One layer's features; raises RunError if the run does not hold that layer."""
        if layer not in self.saes:
            raise RunError(f"{self.path} holds layers {', '.join(map(str, self.layers))}, not {layer}")
        table = self._read(tables.layer_name(layer))
        k = self.saes[layer].k
        norms = np.asarray(table["norm"].to_numpy())
        return LayerFeatures(norms, tables.matrix(table["acts"], k), tables.matrix(table["ids"], k))

    def _read(self, name: str) -> pa.Table:
        try:
            return pq.read_table(self.path / name)
        except (pa.ArrowException, OSError) as error:
            raise RunError(f"{self.path / name} is damaged or missing: make the run again") from error


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
            raise RunError(f"{self.out} holds another job's run: choose another --out, or remove it")
        return run

    @contextmanager
    def collecting(self) -> Iterator[set[int]]:
        """Open the partial directory and yield the numbers of batches that are already there.

        Whatever ends the block early, finished batches stay for the next attempt; a directory without any is removed.
        """
        with self._disk():
            self._resume_or_clear()
            finished = {int(path.stem.removeprefix("batch-")) for path in self._finished()}
        try:
            yield finished
        except BaseException:
            if not self._finished():
                shutil.rmtree(self._partial, ignore_errors=True)
                if self._made_parent:
                    self.out.parent.rmdir()
            raise

    def _finished(self) -> list[Path]:
        return sorted(self._partial.glob("batch-*.npz"))

    def put(self, number: int, features: Mapping[int, LayerFeatures]) -> None:
        """Keep one finished batch."""
        arrays = {f"{layer}.{name}": a for layer, f in features.items() for name, a in vars(f).items()}
        path = self._partial / f"batch-{number:06d}.npz"
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
            starts = np.concatenate([[0], np.cumsum([len(t) for t in tokens])])
            order = np.concatenate([np.arange(starts[p], starts[p + 1]) for batch in batches for p in batch])
            with ExitStack() as stack:
                archives = [stack.enter_context(np.load(path)) for path in self._finished()]
                for spec in self.job.saes:
                    self._write_layer(staging, spec, archives, order)
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
        rows = [
            {"id": p.id, "set": p.set, "pair": p.pair, "split": p.split, "text": p.shown, "n_tokens": len(t)}
            for p, t in zip(prompts, tokens, strict=True)
        ]
        _write(staging / "prompts.parquet", pa.Table.from_pylist(rows, schema=tables.PROMPTS))
        flat = [(n, pos, *token) for n, row in enumerate(tokens) for pos, token in enumerate(row)]
        columns = zip(*flat, strict=True)
        arrays = [pa.array(c, type=f.type) for c, f in zip(columns, tables.TOKENS, strict=True)]
        _write(staging / "tokens.parquet", pa.table(arrays, schema=tables.TOKENS))

    def _write_layer(
        self,
        staging: Path,
        spec: SaeSpec,
        archives: Sequence[Mapping[str, npt.NDArray[Any]]],
        order: npt.NDArray[np.intp],
    ) -> None:
        columns = {}
        for name in ("norms", "acts", "ids"):
            batched = np.concatenate([archive[f"{spec.layer}.{name}"] for archive in archives])
            columns[name] = np.empty_like(batched)
            columns[name][order] = batched
        _write(staging / tables.layer_name(spec.layer), tables.layer_table(**columns, d_sae=spec.d_sae))

    def _write_manifest(self, staging: Path, record: Mapping[str, Any]) -> None:
        hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(staging.iterdir())}
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


def _write(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, compression="zstd")
    with path.open("rb") as file:
        os.fsync(file.fileno())
