"""Qwen-Scope's measures (arXiv 2605.11887): how far sets repeat features, share them, own them."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from saescope.store.arrays import Bools, Floats, Ints
from saescope.store.runs import Run
from saescope.store.tables import LayerFeatures


@dataclass(frozen=True)
class SetMeasures:
    """Measures of a set from the features active at the last position of each prompt.

    `redundancy` is the mean number of its prompts on which such a feature is active; `overlap` the
    share of this set's features that another set has too.
    """

    features: int
    redundancy: float
    overlap: dict[str, float]


def measure_sets(run: Run, stored: LayerFeatures, scored: Bools) -> dict[str, SetMeasures]:
    """Return the measures of every set of a run at one layer."""
    active: dict[str, Counter[int]] = {name: Counter() for name in run.sets}
    for token in _last_tokens(run).tolist():
        if scored[token]:
            prompt = run.prompts[int(run.token_prompt[token])]
            active[prompt.set].update(stored.ids[stored.row(token)].tolist())
    measures = {}
    for name, counts in active.items():
        n_features = max(1, len(counts))
        overlap = {
            other: len(counts.keys() & active[other].keys()) / n_features
            for other in run.sets
            if other != name
        }
        redundancy = counts.total() / n_features
        measures[name] = SetMeasures(len(counts), redundancy, overlap)
    return measures


def _last_tokens(run: Run) -> Ints:
    ends_prompt = np.append(run.token_prompt[1:] != run.token_prompt[:-1], True)
    return np.flatnonzero(ends_prompt)


def monolinguality(stored: LayerFeatures, target: Bools, others: Bools, ids: Ints) -> Floats:
    """Return mean activation over `target` positions minus that over `others`, (features,).

    Positions where a feature does not fire count as 0. `ids` are ascending.
    """
    return _mean_acts(stored, target, ids) - _mean_acts(stored, others, ids)


def _mean_acts(stored: LayerFeatures, positions: Bools, ids: Ints) -> Floats:
    if not len(ids):
        return np.zeros(0)
    counted = positions[stored.token]
    acts = stored.acts[counted].astype(np.float64)
    fired = stored.ids[counted]
    column = np.minimum(np.searchsorted(ids, fired), len(ids) - 1)
    known = ids[column] == fired
    sums = np.bincount(column[known], weights=acts[known], minlength=len(ids))
    return np.asarray(sums / max(1, int(positions.sum())))
