"""Rates, intervals, tests and false discovery control: pure functions on arrays.

Knows no run and no feature.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, ndtri

from saescope.store.arrays import Floats, Ints

_MAX_TAILS = 200_000  # size of a table of all hypergeometric tails
_RESAMPLES = 2000
_MAX_DRAWS = 1_000_000  # values resampled at a time


class Interval(NamedTuple):
    """Ends of confidence intervals, elementwise."""

    low: Floats
    high: Floats

    def at(self, index: int) -> tuple[float, float]:
        """Return the interval of one element."""
        return float(self.low[index]), float(self.high[index])


def wilson(
    rate: float | Floats, n: int | float | Floats | Ints, confidence: float = 0.95
) -> Interval:
    """Return the Wilson score interval of a binomial rate over n trials; (0, 1) if n is 0.

    Wilson 1927.
    """
    rate, n = np.asarray(rate, np.float64), np.asarray(n, np.float64)
    z2 = ndtri(0.5 + confidence / 2) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        shrink = 1 + z2 / n
        centre = (rate + z2 / (2 * n)) / shrink
        variance = rate * (1 - rate) + z2 / (4 * n)
        half = np.sqrt(z2 * variance / n) / shrink
    low = np.where(n > 0, np.clip(centre - half, 0, 1), 0.0)
    high = np.where(n > 0, np.clip(centre + half, 0, 1), 1.0)
    # Exact at rates 0 and 1, where rounding would leave the rate outside its own interval.
    return Interval(np.where(rate <= 0, 0.0, low), np.where(rate >= 1, 1.0, high))


def newcombe(
    rate: Floats, ci: tuple[Floats, Floats], other_rate: Floats, other_ci: tuple[Floats, Floats]
) -> Interval:
    """Return the interval of the difference of two rates from their intervals.

    Newcombe 1998, method 10.
    """
    low, high = ci
    other_low, other_high = other_ci
    difference = rate - other_rate
    return Interval(
        difference - np.hypot(rate - low, other_high - other_rate),
        difference + np.hypot(high - rate, other_rate - other_low),
    )


def bootstrap_mean(values: Floats, seed: int = 0, confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean (Efron 1979).

    Needs at least two independent values.
    """
    rng = np.random.default_rng(seed)
    n = len(values)
    means = np.empty(_RESAMPLES)
    chunk = max(1, _MAX_DRAWS // n)  # bounds the memory
    for start in range(0, _RESAMPLES, chunk):
        stop = min(start + chunk, _RESAMPLES)
        drawn = rng.integers(0, n, (stop - start, n))
        means[start:stop] = values[drawn].mean(axis=1)
    tail = 0.5 - confidence / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def effective_n(hits: npt.NDArray[Any], n: npt.NDArray[Any]) -> Floats:
    """Effective sample size of clustered observations, (features,).

    `hits` (prompts, features) counts the positions on which a feature fires, out of `n`
    (prompts,). Positions of a prompt are correlated, so the variance comes from the ratio
    estimator over prompts (Kish 1965). If that variance is 0 (equal rates in all prompts), the
    result falls back to the number of prompts.
    """
    n = np.asarray(n, np.float64)[:, None]
    hits = np.asarray(hits, np.float64)
    prompts, total = int((n > 0).sum()), float(n.sum())
    if prompts < 2:
        return np.full(hits.shape[1], float(prompts))
    rate = hits.sum(0) / total
    squares = ((hits - rate * n) ** 2).sum(0)
    variance = prompts / (prompts - 1) * squares / total**2
    with np.errstate(divide="ignore", invalid="ignore"):
        effective = rate * (1 - rate) / variance
    return np.where(variance > 0, np.clip(effective, min(prompts, total), total), float(prompts))


def fisher_greater(hits: Ints, n: int, other_hits: Ints, other_n: int) -> Floats:
    """Return the one-sided Fisher p that `hits` of n exceeds `other_hits` of other_n."""
    hits, other_hits = np.broadcast_arrays(hits, other_hits)
    if (n + 1) * (other_n + 1) <= _MAX_TAILS:
        return np.asarray(_tails(n, other_n)[hits, other_hits])
    # Few distinct pairs of counts occur among many features: each pair's tail is computed once.
    from scipy.stats import hypergeom

    code = hits.astype(np.int64) * (other_n + 1) + other_hits
    pairs, pair_index = np.unique(code, return_inverse=True)
    pair_hits, pair_other_hits = np.divmod(pairs, other_n + 1)
    total_hits = pair_hits + pair_other_hits
    tails = np.asarray(hypergeom.sf(pair_hits - 1, n + other_n, total_hits, n))
    p: Floats = tails[pair_index].reshape(hits.shape)
    return np.clip(p, 0.0, 1.0)


def fisher_greater_each(hits: Ints, n: Ints, other_hits: Ints, other_n: Ints) -> Floats:
    """Return `fisher_greater` of tables with sizes of their own, one per element.

    Each different table is computed once.
    """
    sizes, of_size = np.unique(np.stack([n, other_n]), axis=1, return_inverse=True)
    of_size = of_size.reshape(-1)
    rank = (of_size * (hits.max(initial=0) + 1) + hits) * (other_hits.max(initial=0) + 1)
    _, first, of_table = np.unique(rank + other_hits, return_index=True, return_inverse=True)
    hits, n, other_hits, other_n = (values[first] for values in (hits, n, other_hits, other_n))
    is_small = (n + 1) * (other_n + 1) <= _MAX_TAILS
    p = np.empty(len(first))
    p[is_small] = _small_tails(*(v[is_small] for v in (hits, n, other_hits, other_n)))
    for group in np.unique(of_size[first][~is_small]).tolist():
        tables = np.flatnonzero(of_size[first] == group)
        size, other_size = sizes[:, group].tolist()
        p[tables] = fisher_greater(hits[tables], size, other_hits[tables], other_size)
    return p[of_table.reshape(-1)]


def _small_tails(hits: Ints, n: Ints, other_hits: Ints, other_n: Ints) -> Floats:
    """Sum each tail from its far end, as `_tails` does, so that the last bits are equal."""
    total = hits + other_hits
    largest = np.minimum(n, total)
    log_all = _log_choose(n + other_n, total)
    tail = np.zeros(len(hits))
    for step in range(int((largest - hits).max(initial=-1)) + 1):
        k = np.maximum(largest - step, hits)
        log_ways = _log_choose(n, k) + _log_choose(other_n, total - k)
        tail += np.where(largest - step >= hits, np.exp(log_ways - log_all), 0.0)
    return np.minimum(tail, 1.0)


@lru_cache(maxsize=64)
def _tails(n: int, other_n: int) -> Floats:
    """Return all hypergeometric tails.

    `[hits, other_hits]` is P(at least `hits` of n | `hits + other_hits` in both groups).
    """
    hits, other_hits = np.arange(n + 1)[:, None], np.arange(other_n + 1)[None, :]
    log_ways = _log_choose(n, hits) + _log_choose(other_n, other_hits)
    tails = np.empty((n + 1, other_n + 1))
    for total in range(n + other_n + 1):
        first = np.arange(max(0, total - other_n), min(n, total) + 1)
        log_all = _log_choose(n + other_n, np.array(total))
        chance = np.exp(log_ways[first, total - first] - log_all)
        tails[first, total - first] = np.cumsum(chance[::-1])[::-1]
    return np.minimum(tails, 1.0)


def _log_choose(n: int | Ints, k: Ints) -> Floats:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


def min_attainable_p(n: int, other_n: int, hits: int) -> float:
    """Return the smallest p attainable if the feature fires on `hits` prompts of both groups.

    It is attained when as many of them as possible are in the first group.
    """
    first = min(hits, n)
    return float(fisher_greater(np.array([first]), n, np.array([hits - first]), other_n)[0])


def benjamini_hochberg(p: Floats) -> Floats:
    """Return p adjusted for the false discovery rate (Benjamini and Hochberg 1995)."""
    order = np.argsort(p)[::-1]
    adjusted = p[order] * len(p) / np.arange(len(p), 0, -1)
    q = np.empty_like(p)
    q[order] = np.minimum(np.minimum.accumulate(adjusted), 1.0)
    return q
