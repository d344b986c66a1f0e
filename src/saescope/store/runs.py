"""A run: one published, immutable directory of features with a manifest that says what made it.

This file reads and checks runs; writer.py makes them.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from saescope.errors import RunError
from saescope.sources.catalog import ModelSpec, SaeSpec
from saescope.sources.prompts import Message, Prompt, PromptSet
from saescope.store import columns, tables
from saescope.store.tables import LayerFeatures, PromptResids

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
    errors: bool
    versions: Mapping[str, str]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every field and the schema's version."""
        text = json.dumps([tables.SCHEMA_VERSION, asdict(self)], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


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
        if schema not in tables.READABLE:
            known = " and ".join(map(str, tables.READABLE))
            raise RunError(
                f"{path} has schema {schema}, this saescope reads {known}: make the run again"
            )
        if missing := {"fingerprint", "job", "command", "inputs", "tables"} - manifest.keys():
            raise RunError(
                f"{path / MANIFEST} is damaged: it has no {min(missing)}; make the run again"
            )
        return cls(path, manifest)

    @cached_property
    def saes(self) -> dict[int, SaeSpec]:
        """The SAE of every layer."""
        return {spec["layer"]: SaeSpec(**spec) for spec in self.manifest["job"]["saes"]}

    @cached_property
    def model(self) -> ModelSpec:
        """The model that was run."""
        return ModelSpec(**self.manifest["job"]["model"])

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers in this run, ascending."""
        return tuple(sorted(self.saes))

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """All prompts in order."""
        return tuple(_prompt(row) for row in self.read("prompts.parquet").to_pylist())

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """Names of the sets in order."""
        return tuple(dict.fromkeys(p.set for p in self.prompts))

    @property
    def prompt_sets(self) -> tuple[PromptSet, ...]:
        """The prompts as they were read, set by set."""
        return tuple(
            PromptSet(name, tuple(p for p in self.prompts if p.set == name)) for name in self.sets
        )

    @cached_property
    def set_of_prompt(self) -> npt.NDArray[np.intp]:
        """Number of each prompt's set."""
        number = {name: i for i, name in enumerate(self.sets)}
        return np.array([number[p.set] for p in self.prompts], dtype=np.intp)

    @cached_property
    def _tokens(self) -> pa.Table:
        return self.read("tokens.parquet")

    @cached_property
    def token_prompt(self) -> npt.NDArray[np.int32]:
        """Number of each token's prompt."""
        return columns.values(self._tokens["prompt"])

    @cached_property
    def token_pos(self) -> npt.NDArray[np.int32]:
        """Position of each token in its prompt."""
        return columns.values(self._tokens["pos"])

    @cached_property
    def token_text(self) -> list[str]:
        """Each token as text."""
        return list(self._tokens["token"].to_pylist())

    @cached_property
    def token_id(self) -> npt.NDArray[np.int32]:
        """Each token's id in the vocabulary."""
        return columns.values(self._tokens["token_id"])

    def features(self, layer: int) -> LayerFeatures:
        """One layer's features; raises RunError if the run does not hold that layer."""
        self.check_layer(layer)
        return tables.features_of(self.read(tables.features_name(layer)))

    def resids(self, layer: int) -> PromptResids:
        """One layer's residuals by prompt; raises RunError if the run does not hold that layer."""
        self.check_layer(layer)
        return tables.resid_of(self.read(tables.resid_name(layer)), self.model.d_model)

    def check_layer(self, layer: int) -> None:
        """Raises RunError if the run does not hold this layer."""
        if layer not in self.saes:
            raise RunError(
                f"{self.path} holds layers {', '.join(map(str, self.layers))}, not {layer}"
            )

    def read(self, name: str) -> pa.Table:
        """One table by its file name; raises RunError if it is damaged or missing."""
        try:
            return pq.ParquetFile(self.path / name).read()
        except (pa.ArrowException, OSError) as error:
            raise RunError(
                f"{self.path / name} is damaged or missing: make the run again"
            ) from error


def _prompt(row: Mapping[str, Any]) -> Prompt:
    turns = json.loads(row["messages"]) if row["messages"] is not None else None
    return Prompt(
        id=row["id"],
        set=row["set"],
        text=row["text"] if turns is None else None,
        messages=None if turns is None else tuple(Message(**turn) for turn in turns),
        pair=row["pair"],
        split=row["split"],
    )


def verify(path: str | Path) -> list[str]:
    """What is wrong with a run's files, a line each: hashes, tables that are missing or too many, and their schema.

    Raises RunError where there is no readable manifest to judge by.
    """
    run = Run.open(path)
    expected = run.manifest["tables"]
    present = {p.name for p in run.path.iterdir()} - {MANIFEST}
    problems = [f"{name} is missing" for name in sorted(expected.keys() - present)]
    problems += [f"{name} does not belong to the run" for name in sorted(present - expected.keys())]
    for name in sorted(expected.keys() & present):
        if hashlib.sha256((run.path / name).read_bytes()).hexdigest() != expected[name]:
            problems.append(f"{name} is not the file that was published: its SHA-256 differs")
    text = json.dumps(
        [run.manifest["schema"], run.manifest["job"]], sort_keys=True, ensure_ascii=False
    )
    if hashlib.sha256(text.encode()).hexdigest() != run.manifest["fingerprint"]:
        problems.append(f"{MANIFEST} was changed: its fingerprint is not that of its job")
    return problems or _schema_problems(run)


def _schema_problems(run: Run) -> list[str]:
    wanted = {"prompts.parquet": tables.PROMPTS.names, "tokens.parquet": tables.TOKENS.names}
    for layer in run.layers:
        wanted[tables.features_name(layer)] = list(tables.FEATURE_COLUMNS)
        wanted[tables.resid_name(layer)] = list(tables.RESID_COLUMNS)
    problems = [
        f"{name} is not listed in {MANIFEST}"
        for name in wanted.keys() - run.manifest["tables"].keys()
    ]
    rows = {}
    for name in wanted.keys() & run.manifest["tables"].keys():
        table = run.read(name)
        rows[name] = table.num_rows
        if table.column_names != wanted[name]:
            problems.append(
                f"{name} has columns {', '.join(table.column_names)}, not {', '.join(wanted[name])}"
            )
    for name, count in rows.items():
        by_token = name == "tokens.parquet" or name.startswith("layer")
        other = "tokens.parquet" if by_token else "prompts.parquet"
        if count != rows.get(other, count):
            problems.append(f"{name} has {count} rows, {other} {rows[other]}")
    return sorted(problems)
