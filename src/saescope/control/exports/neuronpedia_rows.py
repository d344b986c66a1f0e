"""The rows of a Neuronpedia export, with the columns of the tables they are imported into."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from saescope.control.exports.firings import ExampleWindow, FeatureFirings, Histogram
from saescope.control.exports.logit_effect import LogitEffect
from saescope.control.exports.settings import NeuronpediaSettings
from saescope.store.runs import Run

_PUBLIC = "PUBLIC"
# Lists that the import requires and that saescope leaves empty.
_EMPTY_LISTS = (
    "vector",
    "topkCosSimIndices",
    "topkCosSimValues",
    "neuron_alignment_indices",
    "neuron_alignment_values",
    "neuron_alignment_l1",
    "correlated_neurons_indices",
    "correlated_neurons_pearson",
    "correlated_neurons_l1",
    "correlated_features_indices",
    "correlated_features_pearson",
    "correlated_features_l1",
    "decoder_weights_dist",
)
_NO_EFFECT = LogitEffect((), (), Histogram((), ()))


@dataclass(frozen=True)
class NeuronpediaIds:
    """Neuronpedia's ids of the model and of the set of SAEs, which is also its release's."""

    model: str
    source_set: str

    @classmethod
    def of(cls, run: Run, settings: NeuronpediaSettings) -> "NeuronpediaIds":
        """Return the ids that the settings name, or make them from the names in the run."""
        release = run.saes[run.layers[0]].release
        model = settings.model_id or run.model.repo
        source_set = settings.source_set or release
        return cls(_id(model), _id(source_set))

    def source(self, layer: int) -> str:
        """Return the id of one layer's SAE."""
        return f"{layer}-{self.source_set}"


@dataclass(frozen=True)
class LayerRows:
    """Makes the rows of one layer."""

    run: Run
    layer: int
    ids: NeuronpediaIds
    settings: NeuronpediaSettings

    def metadata(self, notes: str) -> dict[str, dict[str, Any]]:
        """Return the row of each metadata file; `notes` are shown with the source."""
        return {
            "release": self._release(),
            "model": self._model(),
            "sourceset": self._source_set(),
            "source": self._source(notes),
        }

    def feature(self, firings: FeatureFirings, effect: LogitEffect | None) -> dict[str, Any]:
        """Return a feature's row. All rows have the same keys, as the import requires."""
        effect = effect or _NO_EFFECT
        acts = Histogram.of(firings.acts)
        return {
            **self._key,
            "index": str(firings.feature),
            "maxActApprox": _round(firings.acts.max()),
            "hasVector": False,
            "vectorLabel": None,
            "hookName": f"blocks.{self.layer}.hook_resid_post",
            **{name: [] for name in _EMPTY_LISTS},
            "pos_str": [one.token for one in effect.raised],
            "pos_values": [_round(one.value) for one in effect.raised],
            "neg_str": [one.token for one in effect.lowered],
            "neg_values": [_round(one.value) for one in effect.lowered],
            "frac_nonzero": firings.rate,
            "freq_hist_data_bar_heights": acts.counts,
            "freq_hist_data_bar_values": acts.centres,
            "logits_hist_data_bar_heights": list(effect.histogram.counts),
            "logits_hist_data_bar_values": list(effect.histogram.centres),
        }

    def activations(self, firings: FeatureFirings) -> Iterator[dict[str, Any]]:
        """Yield a row for each example of a feature."""
        largest = _round(max(float(example.values.max()) for example in firings.examples))
        for example in firings.examples:
            yield self._activation(firings.feature, example, largest)

    def _activation(self, feature: int, example: ExampleWindow, largest: float) -> dict[str, Any]:
        prompt = self.run.prompts[example.prompt]
        end = example.first_token + len(example.values)
        values = [_round(value) for value in example.values]
        return {
            "id": self._activation_id(feature, example),
            **self._key,
            "index": str(feature),
            "tokens": self.run.token_text[example.first_token : end],
            "values": values,
            "maxValue": max(values),
            "maxValueTokenIndex": int(np.argmax(example.values)),
            "minValue": min(values),
            "dataIndex": prompt.id,
            "dataSource": prompt.set,
            "dfaValues": [],
            "dfaTargetIndex": None,
            "dfaMaxValue": None,
            "lossValues": [],
            "logitContributions": None,
            "binMin": -1,
            "binMax": largest,
            "binContains": -1,
            "qualifyingTokenIndex": None,
        }

    def _activation_id(self, feature: int, example: ExampleWindow) -> str:
        fingerprint = self.run.manifest["fingerprint"]
        key = json.dumps([self._key, feature, example.first_token, fingerprint])
        return "c" + hashlib.sha256(key.encode()).hexdigest()[:24]

    @property
    def _key(self) -> dict[str, Any]:
        """The model and source that a row belongs to, and its owner."""
        return {
            "modelId": self.ids.model,
            "layer": self.ids.source(self.layer),
            **self._owner,
        }

    @property
    def _owner(self) -> dict[str, Any]:
        return {
            "creatorId": self.settings.creator_id,
            "createdAt": str(self.run.manifest["created"]),
        }

    @property
    def _description(self) -> str:
        sae = self.run.saes[self.layer]
        return f"{sae.release}: {sae.d_sae} features of the residual"

    def _release(self) -> dict[str, Any]:
        return {
            "name": self.ids.source_set,
            "description": self._description,
            "descriptionShort": self._description,
            "urls": [],
            "creatorName": self.settings.creator,
            "creatorNameShort": self.settings.creator,
            "visibility": _PUBLIC,
            "defaultUmapSourceIds": [],
            **self._owner,
        }

    def _model(self) -> dict[str, Any]:
        model = self.run.model
        is_instruct = re.search(r"instruct|chat|-it$", model.repo.lower()) is not None
        return {
            "id": self.ids.model,
            "displayName": model.repo,
            "displayNameShort": self.ids.model,
            "owner": self.settings.creator,
            "instruct": is_instruct,
            "layers": model.n_layers,
            "neuronsPerLayer": 0,
            "dimension": model.d_model,
            "inferenceEnabled": False,
            "visibility": _PUBLIC,
            "updatedAt": self._owner["createdAt"],
            **self._owner,
        }

    def _source_set(self) -> dict[str, Any]:
        return {
            "modelId": self.ids.model,
            "name": self.ids.source_set,
            "description": self._description,
            "type": "",
            "creatorName": self.settings.creator,
            "urls": [],
            "releaseName": self.ids.source_set,
            "hasDashboards": True,
            "visibility": _PUBLIC,
            **self._owner,
        }

    def _source(self, notes: str) -> dict[str, Any]:
        release = self.run.saes[self.layer].release
        is_repo = "/" in release
        return {
            "id": self.ids.source(self.layer),
            "modelId": self.ids.model,
            "setName": self.ids.source_set,
            "hasDashboards": True,
            "inferenceEnabled": False,
            "visibility": _PUBLIC,
            "hfRepoId": release if is_repo else None,
            "num_prompts": len(self.run.prompts),
            "num_tokens_in_prompt": self.settings.context,
            "dataset": ", ".join(self.run.sets),
            "notes": notes,
            **self._owner,
        }


def _id(name: str) -> str:
    """Return a name as Neuronpedia writes ids: lower case, without the owner."""
    name = name.rpartition("/")[2].lower()
    return re.sub(r"[^a-z0-9._-]+", "-", name).strip("-.") or "unnamed"


def _round(value: float | np.floating[Any]) -> float:
    return round(float(value), 3)
