"""How much more a feature fires in one set than in any other: scores of rates, and intervals.

Rates are arrays (sets, features); set i is compared with all others.
"""

import numpy as np

from saescope.analysis import stats
from saescope.analysis.counts import FiringCounts
from saescope.analysis.stats import Interval
from saescope.store.arrays import Floats, Ints


def score(rates: Floats, i: int) -> Floats:
    """Set i's rate minus the largest of any other set, (features,)."""
    return np.asarray(rates[i] - largest_other(rates, i))


def largest_other(rates: Floats, i: int) -> Floats:
    """The largest rate of any set other than i, (features,)."""
    return np.asarray(np.delete(rates, i, axis=0).max(axis=0))


def nearest_set(rates: Floats, i: int) -> Ints:
    """The index of the set that has it, (features,)."""
    others = np.delete(np.arange(len(rates)), i)
    return np.asarray(others[rates[others].argmax(axis=0)])


def rate_interval(counts: FiringCounts, i: int) -> Interval:
    """Interval of set i's rates; clustered positions count as many as they are worth."""
    rows = counts.labels == i
    hits, n = counts.hits[rows].toarray(), counts.n[rows]
    return stats.wilson(hits.sum(0) / max(n.sum(), 1), stats.effective_n(hits, n))


def score_interval(counts: FiringCounts, i: int) -> Interval:
    """Interval of set i's score."""
    rates = counts.rates()
    nearest = nearest_set(rates, i)
    low, high = np.zeros(len(nearest)), np.ones(len(nearest))
    for j in np.unique(nearest).tolist():
        of_j = nearest == j
        low[of_j], high[of_j] = rate_interval(counts.of_features(of_j), j)
    other_rates = rates[nearest, np.arange(len(nearest))]
    return stats.newcombe(rates[i], rate_interval(counts, i), other_rates, (low, high))
