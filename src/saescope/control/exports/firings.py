"""What each feature of a stored layer does: how often it fires, how strongly, and on which prompts most."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.store.tables import LayerFeatures

_BINS = 40
_ENTRIES = 2**20  # of which tokens are looked up at once
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Window:
    """Tokens of one prompt around a feature's strongest one: the first of them, and its activation on each."""

    prompt: int
    first: int
    values: Floats


@dataclass(frozen=True)
class Shown:
    """A feature: its activations wherever it fires on a scored position, their share, and its strongest prompts."""

    feature: int
    acts: Floats
    share: float
    examples: Sequence[Window]


@dataclass(frozen=True)
class Firings:
    """One layer's firings, asked for some features at a time: what is held beside the layer itself is theirs alone.

    `counts` (d_sae,) says on how many scored positions each feature fires, `masked` which positions are not.
    """

    stored: LayerFeatures
    scored: npt.NDArray[np.bool_]
    counts: npt.NDArray[np.int64]
    masked: str
    prompt_of: npt.NDArray[np.int32]
    first_of: npt.NDArray[np.intp]

    @classmethod
    def of(cls, run: Run, layer: int, masking: Masking) -> "Firings":
        """The firings of a run's layer; raises RunError if the run does not hold it."""
        stored = run.features(layer)
        positions = masking.apply(run.token_pos, stored.norms)
        counts = np.zeros(run.saes[layer].d_sae, np.int64)
        for start in range(0, len(stored.ids), _ENTRIES):
            part = slice(start, start + _ENTRIES)
            own = stored.ids[part][
                positions.scored[_token(stored, np.arange(*part.indices(len(stored.ids))))]
            ]
            counts += np.bincount(own, minlength=len(counts))
        return cls(
            stored=stored,
            scored=positions.scored,
            counts=counts,
            masked=f"left out: {positions.masked_pos0} first positions, {positions.masked_sinks} sinks",
            prompt_of=run.token_prompt,
            first_of=np.append(np.flatnonzero(run.token_pos == 0), len(run.token_pos)),
        )

    @property
    def fired(self) -> list[int]:
        """Features that fire on a scored position, ascending."""
        return np.flatnonzero(self.counts).tolist()

    def of_features(self, features: Sequence[int], n: int, context: int) -> list[Shown]:
        """Some that fire, ascending, each with its n strongest prompts and at most `context` tokens of each."""
        ids = self.stored.ids
        near = np.flatnonzero((ids >= features[0]) & (ids <= features[-1]))
        near = near[self.scored[_token(self.stored, near)]]
        near = near[np.argsort(ids[near], kind="stable")]
        starts = np.searchsorted(ids[near], features)
        ends = np.searchsorted(ids[near], features, side="right")
        return [
            self._shown(feature, near[start:end], n, context)
            for feature, start, end in zip(features, starts, ends, strict=True)
        ]

    def _shown(self, feature: int, entries: npt.NDArray[np.intp], n: int, context: int) -> Shown:
        token, acts = _token(self.stored, entries), self.stored.acts[entries]
        prompts, starts = np.unique(self.prompt_of[token], return_index=True)
        strongest = np.maximum.reduceat(acts, starts)
        ends = np.append(starts[1:], len(token))
        examples = [
            self._window(
                int(prompts[p]), token[starts[p] : ends[p]], acts[starts[p] : ends[p]], context
            )
            for p in np.argsort(-strongest, kind="stable")[:n]
        ]
        return Shown(feature, acts, len(acts) / int(self.scored.sum()), examples)

    def _window(
        self, prompt: int, token: npt.NDArray[np.intp], acts: Floats, context: int
    ) -> Window:
        begin, end = int(self.first_of[prompt]), int(self.first_of[prompt + 1])
        middle = int(token[np.argmax(acts)])
        first = max(begin, min(middle - context // 2, end - context))
        values = np.zeros(min(context, end - first), np.float32)
        inside = (token >= first) & (token < first + len(values))
        values[token[inside] - first] = acts[inside]
        return Window(prompt, first, values)


def _token(stored: LayerFeatures, entries: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Which token each entry is of."""
    return np.searchsorted(stored.starts, entries, side="right") - 1


def histogram(values: Floats) -> tuple[list[int], list[float]]:
    """Counts in 40 bins between the smallest and the largest value, and the bins' centres."""
    counts, edges = np.histogram(values.astype(np.float64), _BINS)
    return counts.tolist(), np.round((edges[:-1] + edges[1:]) / 2, 3).tolist()
