"""A run: one published, immutable directory of features with a manifest of its inputs.

This file reads and checks runs; writer.py makes them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from saescope.errors import RunError
from saescope.sources.catalog import Feature, ModelSpec, SaeSpec
from saescope.sources.prompts import Prompt, PromptSet
from saescope.store import columns, tables
from saescope.store.arrays import Bools, Float32s, Indices
from saescope.store.manifest import (
    MANIFEST,
    SINKS_ACROSS_LAYERS,
    SIZES,
    digest_of,
    job_fingerprint,
    manifest_problems,
    read_manifest,
)
from saescope.store.masking import Magnitudes, Masking
from saescope.store.sae_fit import SaeFit, SaeFits
from saescope.store.table_checks import magnitudes_problems, table_problems
from saescope.store.table_files import (
    TableDamage,
    TableRecord,
    check_bytes,
    check_file,
    is_remembered,
    read_table,
    remember,
)
from saescope.store.tables import LayerFeatures, PromptResids

_RECOMPUTE = "remove the run and compute it again"
Int32s = npt.NDArray[np.int32]


@final
@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        """Show what the manifest says; damage is for `verify` to name."""
        job = self.manifest.get("job", {})
        layers = ", ".join(str(sae.get("layer")) for sae in job.get("saes", []))
        model = job.get("model", {}).get("repo")
        lines = [f"Run({str(self.path)!r})", f"  model {model}", f"  layers {layers}"]
        return "\n".join(line if len(line) <= 100 else line[:99] + "…" for line in lines)

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Open a run directory; raises RunError if its manifest or a table file is not right.

        Checks the manifest, and that every table exists with the recorded size. A table's bytes and
        content are checked when it is first read; `verify` checks everything.
        """
        path = Path(path)
        manifest = read_manifest(path)
        for problem in manifest_problems(manifest):
            raise RunError(f"{path / MANIFEST} {problem}; {_RECOMPUTE}")
        run = cls(path, manifest)
        for name in manifest["tables"]:
            with run._damage_of(name):
                check_file(path / name, run.record(name))
        return run

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
        table = self.read(tables.PROMPTS_NAME)
        with self._damage_of(tables.PROMPTS_NAME):
            try:
                return tables.prompts_of(table)
            except ValueError as error:
                raise TableDamage("has messages that are no chat") from error

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
        return self.read(tables.TOKENS_NAME)

    @cached_property
    def prompt_lengths(self) -> Int32s:
        """Number of tokens of each prompt, (prompts,)."""
        return columns.values(self.read(tables.PROMPTS_NAME)["n_tokens"])

    def sae_fits(self, layers: Sequence[int] | None = None) -> SaeFits:
        """Return how well each layer's SAE fits.

        A layer's entry is None if an earlier version, which did not measure it, made the run.
        """
        recorded = self.manifest.get("sae_fit", {})
        fits: dict[int, SaeFit | None] = {}
        for layer in layers or self.layers:
            self.check_layer(layer)
            figures = recorded.get(str(layer))
            try:
                fits[layer] = None if figures is None else SaeFit(**figures)
            except TypeError as error:
                raise RunError(
                    f"{self.path / MANIFEST} is damaged: sae_fit is {figures}; {_RECOMPUTE}"
                ) from error
        return SaeFits(fits, self.saes)

    def features(self, layer: int) -> LayerFeatures:
        """Return one layer's features; raises RunError if the run does not hold that layer."""
        self.check_layer(layer)
        self._check_resids(layer)
        return tables.features_of(self.read(tables.features_name(layer)))

    def _check_resids(self, layer: int) -> None:
        """Check the SHA-256 of a layer's residual table.

        If one of a layer's two tables is damaged, neither is used.
        """
        name = tables.resid_name(layer)
        with self._damage_of(name):
            check_bytes(self.path / name, self.record(name))

    def norms(self, layer: int) -> Float32s:
        """Return the tokens' residual norms after one layer, (tokens,)."""
        return self.features(layer).norms

    def magnitudes(self, layer: int) -> Magnitudes:
        """Return how large the residuals after one layer are, without reading its features."""
        self.check_layer(layer)
        name = tables.features_name(layer)
        with self._damage_of(name):
            table, _ = read_table(self.path / name, self.record(name), ("norm", "peak"))
            for problem in magnitudes_problems(table, self.prompt_lengths):
                raise TableDamage(problem)
        return tables.magnitudes_of(table)

    @property
    def sinks_across_layers(self) -> bool:
        """Whether a sink of one layer is one at all; in runs of earlier versions it is not."""
        return bool(self.manifest.get(SINKS_ACROSS_LAYERS, False))

    @cached_property
    def positions_by_masking(self) -> dict[Masking, Any]:
        """What `run_positions` has found, kept for the next question."""
        return {}

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
        """Read one table by its file name; raises RunError if it is damaged or missing.

        Its SHA-256 and its content are checked when this process first reads it.
        """
        with self._damage_of(name):
            table, key = read_table(self.path / name, self.record(name))
            checked = (key, name, self._digest)
            if key is None or not is_remembered(checked):
                lengths = None if name == tables.PROMPTS_NAME else self.prompt_lengths
                for problem in table_problems(name, table, self.saes, lengths):
                    raise TableDamage(problem)
                remember(checked)
            return table

    def check_tables(self) -> None:
        """Read and check every table; raises RunError if one is damaged or missing."""
        for name in self.manifest["tables"]:
            self.read(name)

    def record(self, name: str) -> TableRecord:
        """Return what the manifest says of a table; raises RunError if it says nothing."""
        if name not in self.manifest["tables"]:
            raise RunError(f"{self.path} has no table {name}")
        return TableRecord(self.manifest["tables"][name], self.manifest.get(SIZES, {}).get(name))

    @cached_property
    def _digest(self) -> str:
        """Digest of the manifest.

        A check that passed under another manifest does not count for this run, even if both
        manifests list the same file.
        """
        return digest_of(self.manifest)

    @contextmanager
    def _damage_of(self, name: str) -> Iterator[None]:
        try:
            yield
        except TableDamage as error:
            raise RunError(f"{self.path / name} {error}: {_RECOMPUTE}") from error


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
    "Whether the norm of each token's reconstruction error is stored."

    versions: Mapping[str, str]
    numerics: Mapping[str, Any] = field(default_factory=dict)
    "What decides how sums round: matmul kernels, threads, processor, shared prefixes."

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every field and the schema version."""
        return job_fingerprint(tables.SCHEMA_VERSION, asdict(self))
