"""Qwen-Scope's measures of prompt sets (arXiv 2605.11887): how far sets repeat features, and share them."""

from dataclasses import dataclass

import numpy as np

from saescope.analysis.stats import Bools
from saescope.store.runs import Run
from saescope.store.tables import LayerFeatures


@dataclass(frozen=True)
class SetMeasures:
    """Qwen-Scope's measures of a set, from features active at the last position of each prompt.

    `redundancy` is the mean number of its prompts at which such a feature is active; `overlap` the share of this set's
    features that another set has too.
    """

    features: int
    redundancy: float
    overlap: dict[str, float]


def measure_sets(run: Run, stored: LayerFeatures, scored: Bools) -> dict[str, SetMeasures]:
    """The measures of every set of a run at one layer."""
    last = np.flatnonzero(np.append(run.token_prompt[1:] != run.token_prompt[:-1], True))
    active: dict[str, dict[int, int]] = {name: {} for name in run.sets}
    for row in last.tolist():
        if scored[row]:
            ids = stored.ids[stored.row(row)].tolist()
            counts = active[run.prompts[int(run.token_prompt[row])].set]
            for feature in ids:
                counts[feature] = counts.get(feature, 0) + 1
    return {
        name: SetMeasures(
            features=len(counts),
            redundancy=sum(counts.values()) / len(counts) if counts else 0.0,
            overlap={
                other: len(counts.keys() & active[other].keys()) / len(counts) if counts else 0.0
                for other in run.sets
                if other != name
            },
        )
        for name, counts in active.items()
    }
