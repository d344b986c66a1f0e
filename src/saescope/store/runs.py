"""A run: one published, immutable directory of features with a manifest of its inputs.

This file reads and checks runs; writer.py makes them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from saescope.errors import RunError
from saescope.sources.catalog import Feature, ModelSpec, SaeSpec
from saescope.sources.chats import parse_messages
from saescope.sources.prompts import Prompt, PromptSet
from saescope.store import columns, tables
from saescope.store.arrays import Bools, Indices
from saescope.store.sae_fit import SaeFit, SaeFits
from saescope.store.tables import LayerFeatures, PromptResids

MANIFEST = "manifest.json"
_MANIFEST_KEYS = {"fingerprint", "job", "command", "inputs", "tables"}
Int32s = npt.NDArray[np.int32]


@final
@dataclass(frozen=True)
class Run:
    """A published run, opened for reading.

    >>> import tempfile
    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", [2])
    >>> saes = [ss.load_sae("saescope-tiny-sae", 2)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ss.extract(lm, saes, ss.bundled_prompts()[:1], f"{folder}/run").path.name
    ...     run = ss.Run.open(f"{folder}/run")
    ...     run.layers, len(run.prompts), run.features(2).norms.shape == run.token_pos.shape
    'run'
    ((2,), 36, True)
    """

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Open a run directory; raises RunError if it is not one, or if its schema is unknown."""
        path = Path(path)
        manifest = _read_manifest(path)
        schema = manifest.get("schema")
        if schema not in tables.READABLE_SCHEMAS:
            supported = ", ".join(map(str, tables.READABLE_SCHEMAS))
            raise RunError(
                f"{path} has schema {schema} (supported: {supported}): recompute the run"
            )
        missing = _MANIFEST_KEYS - manifest.keys()
        if missing:
            raise RunError(
                f"{path / MANIFEST} is damaged: it has no {min(missing)}; recompute the run"
            )
        return cls(path, manifest)

    @cached_property
    def saes(self) -> dict[int, SaeSpec]:
        """The SAE of every layer."""
        specs = [SaeSpec(**fields) for fields in self.manifest["job"]["saes"]]
        return {spec.layer: spec for spec in specs}

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
        return tuple(dict.fromkeys(prompt.set for prompt in self.prompts))

    @property
    def prompt_sets(self) -> tuple[PromptSet, ...]:
        """The prompts as they were read, set by set."""
        by_set: dict[str, list[Prompt]] = {name: [] for name in self.sets}
        for prompt in self.prompts:
            by_set[prompt.set].append(prompt)
        return tuple(PromptSet(name, tuple(prompts)) for name, prompts in by_set.items())

    @cached_property
    def set_of_prompt(self) -> Indices:
        """For each prompt, the index of its set in `sets`, (prompts,)."""
        index = {name: i for i, name in enumerate(self.sets)}
        return np.array([index[prompt.set] for prompt in self.prompts], dtype=np.intp)

    def prompts_per_set(self, included: Bools) -> dict[str, int]:
        """Return how many of the included prompts each set has; `included` is (prompts,)."""
        n_prompts = np.bincount(self.set_of_prompt[included], minlength=len(self.sets))
        return dict(zip(self.sets, n_prompts.tolist(), strict=True))

    @cached_property
    def set_of_token(self) -> Indices:
        """For each token, the index of its set in `sets`, (tokens,)."""
        return np.asarray(self.set_of_prompt[self.token_prompt])

    @cached_property
    def token_prompt(self) -> Int32s:
        """For each token, the index of its prompt, (tokens,)."""
        return columns.values(self._tokens["prompt"])

    @cached_property
    def token_pos(self) -> Int32s:
        """Position of each token in its prompt, (tokens,)."""
        return columns.values(self._tokens["pos"])

    @cached_property
    def token_text(self) -> list[str]:
        """Each token as text."""
        return list(self._tokens["token"].to_pylist())

    @cached_property
    def token_id(self) -> Int32s:
        """Each token's id in the vocabulary, (tokens,)."""
        return columns.values(self._tokens["token_id"])

    @cached_property
    def is_text(self) -> Bools:
        """For each token, whether it is text and not a special token such as a BOS, (tokens,).

        In runs of earlier versions, every token counts as text.
        """
        return np.isin(self.token_id, self.manifest.get("special_tokens", []), invert=True)

    @cached_property
    def _tokens(self) -> pa.Table:
        return self.read("tokens.parquet")

    def sae_fits(self, layers: Sequence[int] | None = None) -> SaeFits:
        """Return how well each layer's SAE fits; None if the run's version did not measure it."""
        recorded = self.manifest.get("sae_fit", {})
        fits: dict[int, SaeFit | None] = {}
        for layer in layers or self.layers:
            self.check_layer(layer)
            figures = recorded.get(str(layer))
            try:
                fits[layer] = None if figures is None else SaeFit(**figures)
            except TypeError as error:
                raise RunError(
                    f"{self.path / MANIFEST} is damaged: sae_fit is {figures}"
                ) from error
        return SaeFits(fits, self.saes)

    def features(self, layer: int) -> LayerFeatures:
        """Return one layer's features; raises RunError if the run does not hold that layer."""
        self.check_layer(layer)
        return tables.features_of(self.read(tables.features_name(layer)))

    def resids(self, layer: int) -> PromptResids:
        """Return one layer's residuals per prompt; raises RunError if the run does not hold it."""
        self.check_layer(layer)
        return tables.resid_of(self.read(tables.resid_name(layer)), self.model.d_model)

    def check_layer(self, layer: int) -> None:
        """Raise RunError if the run does not hold this layer."""
        if layer not in self.saes:
            layers = ", ".join(map(str, self.layers))
            raise RunError(f"{self.path} holds layers {layers}, not {layer}")

    def check_feature(self, feature: Feature) -> None:
        """Raise RunError if the run does not hold this feature."""
        self.check_layer(feature.layer)
        d_sae = self.saes[feature.layer].d_sae
        if not 0 <= feature.id < d_sae:
            raise RunError(
                f"layer {feature.layer} has no feature {feature.id} (ids are 0-{d_sae - 1})"
            )

    def read(self, name: str) -> pa.Table:
        """Read one table by its file name; raises RunError if it is damaged or missing."""
        path = self.path / name
        try:
            return pq.ParquetFile(path.absolute()).read()
        except (pa.ArrowException, OSError) as error:
            raise RunError(f"{path} is damaged or missing: recompute the run") from error


@dataclass(frozen=True)
class Job:
    """Everything that decides a run's features: equal jobs publish byte-identical tables."""

    model: ModelSpec
    saes: tuple[SaeSpec, ...]
    prompts: str
    dtype: str
    device: str
    batch_tokens: int
    errors: bool
    versions: Mapping[str, str]
    numerics: Mapping[str, Any] = field(default_factory=dict)
    "What decides how sums round: matmul kernels, threads, processor, shared prefixes."

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every field and the schema version."""
        return _fingerprint(tables.SCHEMA_VERSION, asdict(self))


def verify(path: str | Path) -> list[str]:
    """List problems with a run's files, one line each; empty if it is intact.

    Checks hashes, missing and unexpected files, the manifest's fingerprint, then columns and row
    counts. Raises RunError if the manifest cannot be read.

    >>> import tempfile
    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", [2])
    >>> saes = [ss.load_sae("saescope-tiny-sae", 2)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = ss.extract(lm, saes, ss.bundled_prompts()[:1], f"{folder}/run")
    ...     (run.path / "tokens.parquet").unlink()
    ...     ss.verify(run.path)
    ['tokens.parquet is missing']
    """
    run = Run.open(path)
    hashes: Mapping[str, str] = run.manifest["tables"]
    present = {file.name for file in run.path.iterdir()} - {MANIFEST}
    problems = [f"{name} is missing" for name in sorted(hashes.keys() - present)]
    problems += [
        f"{name} is unexpected: it is not listed in {MANIFEST}"
        for name in sorted(present - hashes.keys())
    ]
    for name in sorted(hashes.keys() & present):
        if hashlib.sha256((run.path / name).read_bytes()).hexdigest() != hashes[name]:
            problems.append(f"{name} was modified: its SHA-256 differs from the manifest")
    if _fingerprint(run.manifest["schema"], run.manifest["job"]) != run.manifest["fingerprint"]:
        problems.append(
            f"the fingerprint in {MANIFEST} does not match its job: the manifest was modified"
        )
    return problems or _schema_problems(run)


def _read_manifest(path: Path) -> Mapping[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} is not a run: it has no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path / MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict):
        raise RunError(f"{path / MANIFEST} is damaged: it is not an object; recompute the run")
    return manifest


def _fingerprint(schema: int, job: Mapping[str, Any]) -> str:
    text = json.dumps([schema, job], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _prompt(row: Mapping[str, Any]) -> Prompt:
    """Return the prompt stored in a row of the prompts table."""
    fields = {name: row[name] for name in ("id", "set", "pair", "split")}
    if row["messages"] is None:
        return Prompt(text=row["text"], **fields)
    return Prompt(messages=parse_messages(json.loads(row["messages"])), **fields)


def _schema_problems(run: Run) -> list[str]:
    """List tables that are not in the manifest or have wrong columns or row counts."""
    expected = _expected_columns(run)
    listed = run.manifest["tables"].keys()
    problems = [f"{name} is not listed in {MANIFEST}" for name in expected.keys() - listed]
    n_rows = {}
    for name in expected.keys() & listed:
        table = run.read(name)
        n_rows[name] = table.num_rows
        if table.column_names != expected[name]:
            actual = ", ".join(table.column_names)
            problems.append(f"{name} has columns {actual}, not {', '.join(expected[name])}")
    # A table that is missing is reported already, so nothing is compared with it.
    for name, n in n_rows.items():
        per_token = name == "tokens.parquet" or name.startswith("layer")
        reference_table = "tokens.parquet" if per_token else "prompts.parquet"
        if n != n_rows.get(reference_table, n):
            problems.append(f"{name} has {n} rows, {reference_table} has {n_rows[reference_table]}")
    return sorted(problems)


def _expected_columns(run: Run) -> dict[str, Sequence[str]]:
    expected: dict[str, Sequence[str]] = {
        "prompts.parquet": tables.PROMPTS.names,
        "tokens.parquet": tables.TOKENS.names,
    }
    for layer in run.layers:
        expected[tables.features_name(layer)] = list(tables.FEATURE_COLUMNS)
        expected[tables.resid_name(layer)] = list(tables.RESID_COLUMNS)
    return expected
