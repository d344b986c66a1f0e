"""A stored run as a Neuronpedia export: metadata and gzipped JSON lines of features and activations.

The layout and every field's name are those of SAEDashboard's converter and of the tables they are imported into:

    {model}/{layer}-{set}/  release.jsonl  model.jsonl  sourceset.jsonl  source.jsonl
                            features/batch-{n}.jsonl.gz  activations/batch-{n}.jsonl.gz

Only features that fire on a scored position are written; on others, values are 0. The same run gives the same bytes.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saescope.control.exports.export_result import ExportResult, files_in
from saescope.control.exports.firings import Firings, Shown, histogram
from saescope.control.exports.settings import NeuronpediaSettings
from saescope.sources.catalog import SaeSpec
from saescope.store.atomic import atomic_folder
from saescope.store.runs import Run

EQUALS = "what the run holds: every feature's activations on its strongest prompts, rounded to 3 decimals"
_BATCH = 256
_VISIBLE = "PUBLIC"
# Lists that an import needs though nothing here fills them.
_EMPTY_LISTS = (
    "vector", "topkCosSimIndices", "topkCosSimValues", "neuron_alignment_indices", "neuron_alignment_values",
    "neuron_alignment_l1", "correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1",
    "correlated_features_indices", "correlated_features_pearson", "correlated_features_l1", "decoder_weights_dist",
)  # fmt: skip


@dataclass(frozen=True)
class Effect:
    """What a feature's direction does to the logits: the tokens it raises and lowers most, and how all are moved."""

    raised: Sequence[tuple[str, float]]
    lowered: Sequence[tuple[str, float]]
    heights: Sequence[int]
    values: Sequence[float]


# What features of a layer do to the logits, an effect each.
Lens = Callable[[int, Sequence[int]], Sequence[Effect]]


@dataclass(frozen=True)
class Names:
    """Neuronpedia's ids of the model and of the set of sources, which is also its release's, and who made them."""

    model: str
    source_set: str
    creator: str
    creator_id: str

    @classmethod
    def of(cls, run: Run, settings: NeuronpediaSettings) -> "Names":
        """Ids made of the model's and the SAE release's names: lower case, without owner."""
        release = run.saes[run.layers[0]].release
        model, source_set = settings.model_id or run.model.repo, settings.source_set or release
        return cls(_id(model), _id(source_set), settings.creator, settings.creator_id)

    def source(self, layer: int) -> str:
        """The id of one layer's source."""
        return f"{layer}-{self.source_set}"


def export_neuronpedia(
    run: Run,
    out: str | Path,
    *,
    layers: Sequence[int] | None = None,
    lens: Lens | None = None,
    settings: NeuronpediaSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExportResult:
    """Write a run's features with their strongest prompts, at most `settings.context` tokens of each around the strongest one.

    Without a `lens` logits are left empty. Raises RunError for a layer that the run does not hold.
    """
    settings = settings or NeuronpediaSettings()
    settings.check()
    names, out = Names.of(run, settings), Path(out).expanduser()
    n_examples, context = settings.n_examples, settings.context
    for layer in layers or ():
        run.check_layer(layer)
    chosen = sorted(set(layers)) if layers is not None else list(run.layers)
    totals: dict[int, int] = {}
    with atomic_folder(out) as folder:
        for layer in chosen:
            place = folder / names.model / names.source(layer)
            (place / "features").mkdir(parents=True)
            (place / "activations").mkdir()
            firings = Firings.of(run, layer, settings.masking)
            fired = firings.fired
            writer = _Layer(run, layer, names, n_examples, context)
            for name, row in writer.about(firings.masked).items():
                _write(place / f"{name}.jsonl", [row])
            totals[layer] = 0
            for number, ids in enumerate(_batches(fired)):
                shown = firings.of_features(ids, n_examples, context)
                effects: Sequence[Effect | None] = lens(layer, ids) if lens else [None] * len(ids)
                file = f"batch-{number}.jsonl.gz"
                _write(place / "features" / file, map(writer.feature, shown, effects))
                _write(
                    place / "activations" / file,
                    (row for one in shown for row in writer.activations(one)),
                )
                totals[layer] += len(ids)
                if progress:
                    progress(totals[layer], len(fired))
    limits = (
        ()
        if lens
        else ("the tokens that features raise and lower are left empty: no model was given",)
    )
    return ExportResult(
        "neuronpedia", out, files_in(out), True, EQUALS, limits, {"features": totals}
    )


def _id(name: str) -> str:
    """A name as Neuronpedia's ids are written."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.rpartition("/")[2].lower()).strip("-.") or "unnamed"


def _batches(ids: Sequence[int]) -> Iterator[list[int]]:
    return (list(ids[start : start + _BATCH]) for start in range(0, len(ids), _BATCH))


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    lines = (
        (json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii") for row in rows
    )
    with path.open("wb") as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", 5, raw, mtime=0) as file:
                file.writelines(lines)
        else:
            raw.writelines(lines)


@dataclass(frozen=True)
class _Layer:
    """One layer's rows."""

    run: Run
    layer: int
    names: Names
    n_examples: int
    context: int

    @property
    def _spec(self) -> SaeSpec:
        return self.run.saes[self.layer]

    @property
    def _place(self) -> dict[str, Any]:
        """Which feature's table a row belongs to, and whose it is."""
        return {"modelId": self.names.model, "layer": self.names.source(self.layer), **self._owner}

    @property
    def _owner(self) -> dict[str, Any]:
        return {"creatorId": self.names.creator_id, "createdAt": str(self.run.manifest["created"])}

    def about(self, masked: str) -> dict[str, dict[str, Any]]:
        """The rows of release, model, set and source."""
        names, model = self.names, self.run.model
        creator = {"creatorName": names.creator, "creatorNameShort": names.creator}
        words = f"{self._spec.release}: {self._spec.d_sae} features of the residual"
        return {
            "release": {
                "name": names.source_set, "description": words, "descriptionShort": words, "urls": [], **creator,
                "visibility": _VISIBLE, "defaultUmapSourceIds": [], **self._owner,
            },
            "model": {
                "id": names.model, "displayName": model.repo, "displayNameShort": names.model, "owner": names.creator,
                "instruct": bool(re.search(r"instruct|chat|-it$", model.repo.lower())), "layers": model.n_layers,
                "neuronsPerLayer": 0, "dimension": model.d_model, "inferenceEnabled": False, "visibility": _VISIBLE,
                "updatedAt": self._owner["createdAt"], **self._owner,
            },
            "sourceset": {
                "modelId": names.model, "name": names.source_set, "description": words, "type": "",
                "creatorName": names.creator, "urls": [], "releaseName": names.source_set, "hasDashboards": True,
                "visibility": _VISIBLE, **self._owner,
            },
            "source": {
                "id": names.source(self.layer), "modelId": names.model, "setName": names.source_set,
                "hasDashboards": True, "inferenceEnabled": False, "visibility": _VISIBLE,
                "hfRepoId": self._spec.release if "/" in self._spec.release else None,
                "num_prompts": len(self.run.prompts), "num_tokens_in_prompt": self.context,
                "dataset": ", ".join(self.run.sets), "notes": masked, **self._owner,
            },
        }  # fmt: skip

    def feature(self, shown: Shown, effect: Effect | None) -> dict[str, Any]:
        """A feature's row; every row has the same keys, for an import takes them from the first."""
        heights, values = histogram(shown.acts)
        raised, lowered = (effect.raised, effect.lowered) if effect else ((), ())
        return {
            **self._place,
            "index": str(shown.feature),
            "maxActApprox": _round(shown.acts.max()),
            "hasVector": False,
            "vectorLabel": None,
            "hookName": f"blocks.{self.layer}.hook_resid_post",
            **{name: [] for name in _EMPTY_LISTS},
            "pos_str": [text for text, _ in raised],
            "pos_values": [_round(value) for _, value in raised],
            "neg_str": [text for text, _ in lowered],
            "neg_values": [_round(value) for _, value in lowered],
            "frac_nonzero": shown.share,
            "freq_hist_data_bar_heights": heights,
            "freq_hist_data_bar_values": values,
            "logits_hist_data_bar_heights": list(effect.heights) if effect else [],
            "logits_hist_data_bar_values": list(effect.values) if effect else [],
        }

    def activations(self, shown: Shown) -> Iterator[dict[str, Any]]:
        """A row for each of a feature's strongest prompts."""
        top = _round(max(float(example.values.max()) for example in shown.examples))
        for example in shown.examples:
            values = [_round(value) for value in example.values]
            mark = json.dumps(
                [self._place, shown.feature, example.first, self.run.manifest["fingerprint"]]
            )
            yield {
                "id": "c" + hashlib.sha256(mark.encode()).hexdigest()[:24],
                **self._place,
                "index": str(shown.feature),
                "tokens": self.run.token_text[example.first : example.first + len(values)],
                "values": values,
                "maxValue": max(values),
                "maxValueTokenIndex": int(np.argmax(example.values)),
                "minValue": min(values),
                "dataIndex": self.run.prompts[example.prompt].id,
                "dataSource": self.run.prompts[example.prompt].set,
                "dfaValues": [],
                "dfaTargetIndex": None,
                "dfaMaxValue": None,
                "lossValues": [],
                "logitContributions": None,
                "binMin": -1,
                "binMax": top,
                "binContains": -1,
                "qualifyingTokenIndex": None,
            }


def _round(value: float | np.floating[Any]) -> float:
    return round(float(value), 3)
