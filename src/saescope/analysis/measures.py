"""Qwen-Scope's measures (arXiv 2605.11887): how far sets repeat features, share them, own them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from saescope.store.arrays import Bools, Floats, Ints
from saescope.store.runs import Run
from saescope.store.tables import LayerFeatures

MAX_OVERLAPS = 100


@dataclass(frozen=True)
class SetMeasures:
    """Measures of a set from the features active at the last position of each prompt.

    `redundancy` is the mean number of its prompts on which such a feature is active; `overlap` the
    share of this set's features that another set has too, for the MAX_OVERLAPS sets that share most
    (all others, if there are no more).
    """

    features: int
    redundancy: float
    overlap: dict[str, float]


def measure_sets(run: Run, stored: LayerFeatures, scored: Bools) -> dict[str, SetMeasures]:
    """Return the measures of every set of a run at one layer."""
    is_last = np.zeros(len(scored), bool)
    is_last[_last_tokens(run)] = True
    fired = (is_last & scored)[stored.token]
    present, column = np.unique(stored.ids[fired], return_inverse=True)
    cells = (run.set_of_token[stored.token[fired]], column)
    shape = (len(run.sets), len(present))
    prompts = sparse.coo_array((np.ones(len(column), np.int64), cells), shape).tocsr()
    has_feature = (prompts > 0).astype(np.int64)
    n_features = np.asarray(has_feature.sum(axis=1)).tolist()
    totals = np.asarray(prompts.sum(axis=1)).tolist()
    measures = {}
    for i, name in enumerate(run.sets):
        n = max(1, n_features[i])
        overlap = _overlaps(run.sets, i, has_feature @ has_feature[[i]].toarray()[0], n)
        measures[name] = SetMeasures(n_features[i], totals[i] / n, overlap)
    return measures


def _overlaps(names: Sequence[str], i: int, shared: Ints, n_features: int) -> dict[str, float]:
    """Return the share of set i's features that other sets have, in the order of the sets.

    Bounded, because a value per pair of sets would be quadratic in the sets.
    """
    largest = np.argsort(-shared, kind="stable")
    others = np.sort(largest[largest != i][:MAX_OVERLAPS])
    return {names[other]: int(shared[other]) / n_features for other in others.tolist()}


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
