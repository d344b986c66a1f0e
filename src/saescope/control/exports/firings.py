"""How often and how strongly each feature of a stored layer fires, and on which prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from saescope.store.masking import Masking
from saescope.store.run_positions import run_positions
from saescope.store.runs import Run
from saescope.store.tables import LayerFeatures

_N_BINS = 40
_CHUNK = 2**20  # stored activations whose tokens are looked up at a time
Floats = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class LayerFirings:
    """The firings of a stored layer. `of_features` reads some features at a time, to save memory.

    `counts` (d_sae,) holds on how many scored positions each feature fires, and `first_token`
    (n_prompts + 1,) the first token of each prompt. `masked` says which positions are not scored.
    """

    stored: LayerFeatures
    scored: npt.NDArray[np.bool_]
    counts: npt.NDArray[np.int64]
    masked: str
    prompt_of_token: npt.NDArray[np.int32]
    first_token: Indices

    @classmethod
    def of(cls, run: Run, layer: int, masking: Masking) -> "LayerFirings":
        """Count the firings of a run's layer; raises RunError if the run does not hold it."""
        stored = run.features(layer)
        positions = run_positions(run, masking)[layer]
        n_tokens = len(run.token_pos)
        return cls(
            stored=stored,
            scored=positions.scored,
            counts=_count(stored, positions.scored, run.saes[layer].d_sae),
            masked=(
                f"left out: {positions.masked_pos0} first positions, {positions.masked_sinks} sinks"
            ),
            prompt_of_token=run.token_prompt,
            first_token=np.append(np.flatnonzero(run.token_pos == 0), n_tokens),
        )

    @property
    def fired(self) -> list[int]:
        """The features that fire on a scored position, ascending."""
        return np.flatnonzero(self.counts).tolist()

    def of_features(
        self, features: Sequence[int], n_examples: int, context: int
    ) -> list["FeatureFirings"]:
        """Return the firings of some features, which are ascending and fire somewhere."""
        ids = self.stored.ids
        entries = np.flatnonzero((ids >= features[0]) & (ids <= features[-1]))
        entries = entries[self.scored[_tokens_of(self.stored, entries)]]
        entries = entries[np.argsort(ids[entries], kind="stable")]
        starts = np.searchsorted(ids[entries], features)
        ends = np.searchsorted(ids[entries], features, side="right")
        firings = []
        for feature, start, end in zip(features, starts, ends, strict=True):
            firings.append(self._of_feature(feature, entries[start:end], n_examples, context))
        return firings

    def _of_feature(
        self, feature: int, entries: Indices, n_examples: int, context: int
    ) -> "FeatureFirings":
        tokens = _tokens_of(self.stored, entries)
        acts = self.stored.acts[entries]
        prompts, starts = np.unique(self.prompt_of_token[tokens], return_index=True)
        ends = np.append(starts[1:], len(tokens))
        peaks = np.maximum.reduceat(acts, starts)
        examples = []
        for index in np.argsort(-peaks, kind="stable")[:n_examples]:
            prompt_entries = slice(starts[index], ends[index])
            examples.append(
                self._example(
                    int(prompts[index]), tokens[prompt_entries], acts[prompt_entries], context
                )
            )
        rate = len(acts) / int(self.scored.sum())
        return FeatureFirings(feature, acts, rate, examples)

    def _example(self, prompt: int, tokens: Indices, acts: Floats, context: int) -> "ExampleWindow":
        start, end = int(self.first_token[prompt]), int(self.first_token[prompt + 1])
        peak = int(tokens[np.argmax(acts)])
        first = max(start, min(peak - context // 2, end - context))
        values = np.zeros(min(context, end - first), np.float32)
        shown = (tokens >= first) & (tokens < first + len(values))
        values[tokens[shown] - first] = acts[shown]
        return ExampleWindow(prompt, first, values)


@dataclass(frozen=True)
class FeatureFirings:
    """A feature's activations on the scored positions on which it fires, and its strongest prompts.

    `rate` is the share of scored positions on which it fires.
    """

    feature: int
    acts: Floats
    rate: float
    examples: Sequence["ExampleWindow"]


@dataclass(frozen=True)
class ExampleWindow:
    """The tokens of one prompt around the feature's strongest one.

    `first_token` is the first of them in the run, `values` the activation on each.
    """

    prompt: int
    first_token: int
    values: Floats


@dataclass(frozen=True)
class Histogram:
    """Counts in bins of equal width, and the centre of each bin."""

    counts: Sequence[int]
    centres: Sequence[float]

    @classmethod
    def of(cls, values: Floats) -> "Histogram":
        """Count values in 40 bins between the smallest and the largest."""
        counts, edges = np.histogram(values.astype(np.float64), _N_BINS)
        centres = np.round((edges[:-1] + edges[1:]) / 2, 3)
        return cls(counts.tolist(), centres.tolist())


def _count(
    stored: LayerFeatures, scored: npt.NDArray[np.bool_], d_sae: int
) -> npt.NDArray[np.int64]:
    """Count on how many scored positions each feature fires."""
    counts = np.zeros(d_sae, np.int64)
    n_entries = len(stored.ids)
    for start in range(0, n_entries, _CHUNK):
        entries = np.arange(start, min(start + _CHUNK, n_entries))
        on_scored = scored[_tokens_of(stored, entries)]
        counts += np.bincount(stored.ids[entries[on_scored]], minlength=d_sae)
    return counts


def _tokens_of(stored: LayerFeatures, entries: Indices) -> Indices:
    """Return the token of each stored activation."""
    return np.searchsorted(stored.starts, entries, side="right") - 1
