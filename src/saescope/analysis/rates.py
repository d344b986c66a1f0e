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


def rate_interval(counts: FiringCounts, i: int) -> Interval:
    """Return the interval of set i's rates.

    Uses the effective sample size, since positions of a prompt are correlated.
    """
    in_set = counts.labels == i
    hits, n = counts.hits[in_set].toarray(), counts.n[in_set]
    return stats.wilson(hits.sum(0) / max(n.sum(), 1), stats.effective_n(hits, n))


def margin_interval(counts: FiringCounts, i: int) -> Interval:
    """Return the interval of set i's rate margin (Newcombe), (features,)."""
    rates = counts.rates()
    runner_ups = runner_up(rates, i)
    low, high = np.zeros(len(runner_ups)), np.ones(len(runner_ups))
    for j in np.unique(runner_ups).tolist():
        of_j = runner_ups == j
        low[of_j], high[of_j] = rate_interval(counts.of_features(of_j), j)
    other_rates = rates[runner_ups, np.arange(len(runner_ups))]
    return stats.newcombe(rates[i], rate_interval(counts, i), other_rates, (low, high))
