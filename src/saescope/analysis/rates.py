"""How much more often a feature fires in one set than in any other: margins and intervals.

Rates are arrays (sets, features); set i is compared with all others.
"""

import numpy as np

from saescope.analysis import stats
from saescope.analysis.counts import FiringCounts
from saescope.analysis.stats import Interval
from saescope.store.arrays import Floats, Ints


def rate_margin(rates: Floats, i: int) -> Floats:
    """Return set i's rate minus the highest rate in any other set, (features,)."""
    return np.asarray(rates[i] - largest_other(rates, i))


def largest_other(rates: Floats, i: int) -> Floats:
    """Return the highest rate in any set other than i, (features,)."""
    return np.asarray(np.delete(rates, i, axis=0).max(axis=0))


def runner_up(rates: Floats, i: int) -> Ints:
    """Return the index of the other set with the highest rate, (features,)."""
    others = np.delete(np.arange(len(rates)), i)
    return np.asarray(others[rates[others].argmax(axis=0)])


def rate_intervals(counts: FiringCounts, sets: Ints, columns: Ints) -> Interval:
    """Return the intervals of the rates of features in sets, one per pair (set, feature).

    Uses the effective sample size, since positions of a prompt are correlated.
    """
    low, high = np.zeros(len(sets)), np.ones(len(sets))
    order = np.argsort(sets, kind="stable")
    present, starts = np.unique(sets[order], return_index=True)
    for i, pairs in zip(present.tolist(), np.split(order, starts[1:]), strict=True):
        prompts = counts.prompts_of_sets[i]
        hits, n = counts.hits[prompts][:, columns[pairs]].toarray(), counts.n[prompts]
        rates = hits.sum(0) / max(n.sum(), 1)
        low[pairs], high[pairs] = stats.wilson(rates, stats.effective_n(hits, n))
    return Interval(low, high)


def margin_intervals(counts: FiringCounts, sets: Ints, columns: Ints) -> Interval:
    """Return the intervals of rate margins (Newcombe), one per pair (set, feature)."""
    rates, runner_ups = counts.rates(), counts.leaders.runner_up(sets, columns)
    return stats.newcombe(
        rates[sets, columns],
        rate_intervals(counts, sets, columns),
        rates[runner_ups, columns],
        rate_intervals(counts, runner_ups, columns),
    )
