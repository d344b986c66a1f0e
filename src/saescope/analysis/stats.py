"""Rates, intervals, tests and false discovery control: pure functions on arrays. Knows no run and no feature."""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, ndtri

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]

_CHUNK = 4096
_TAILS_LIMIT = 200_000
_RESAMPLES, _DRAWS = 2000, 1_000_000


def wilson(
    rate: float | Floats, n: int | float | Floats | Ints, confidence: float = 0.95
) -> tuple[Floats, Floats]:
    """Wilson score interval of a binomial rate over n trials; (0, 1) where n is 0 (Wilson 1927)."""
    rate, n = np.asarray(rate, np.float64), np.asarray(n, np.float64)
    z2 = ndtri(0.5 + confidence / 2) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
        half = np.sqrt(z2 * (rate * (1 - rate) + z2 / (4 * n)) / n) / (1 + z2 / n)
    low = np.where(n > 0, np.clip(centre - half, 0, 1), 0.0)
    high = np.where(n > 0, np.clip(centre + half, 0, 1), 1.0)
    # The ends are exact at 0 and 1, where rounding would leave the rate outside its own interval.
    return np.where(rate <= 0, 0.0, low), np.where(rate >= 1, 1.0, high)


def newcombe(
    rate: Floats, ci: tuple[Floats, Floats], other_rate: Floats, other_ci: tuple[Floats, Floats]
) -> tuple[Floats, Floats]:
    """Interval of a difference of two rates, from each one's own interval (Newcombe 1998, method 10)."""
    difference = rate - other_rate
    low = difference - np.hypot(rate - ci[0], other_ci[1] - other_rate)
    high = difference + np.hypot(ci[1] - rate, other_rate - other_ci[0])
    return low, high


def bootstrap_mean(values: Floats, seed: int = 0, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of independent values, at least two of them (Efron 1979)."""
    rng = np.random.default_rng(seed)
    n = len(values)
    rows = max(
        1, _DRAWS // n
    )  # resampled in parts, so that many values need no more memory than few
    parts = [min(rows, _RESAMPLES - done) for done in range(0, _RESAMPLES, rows)]
    means = np.concatenate([values[rng.integers(0, n, (part, n))].mean(axis=1) for part in parts])
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def effective_n(hits: npt.NDArray[Any], n: npt.NDArray[Any]) -> Floats:
    """Independent trials that the clustered ones are worth: for prompts (axis 0) with `hits` of `n` tokens each.

    Tokens of a prompt are not independent; the ratio estimator's variance over prompts (Kish 1965) says by how much.
    Where it cannot be told (every prompt alike), the number of prompts is taken, the least the data can be worth.
    """
    n = np.asarray(n, np.float64)[:, None]
    hits = np.asarray(hits, np.float64)
    prompts, total = int((n > 0).sum()), float(n.sum())
    if prompts < 2:
        return np.full(hits.shape[1], float(prompts))
    rate = hits.sum(0) / total
    variance = prompts / (prompts - 1) * ((hits - rate * n) ** 2).sum(0) / total**2
    with np.errstate(divide="ignore", invalid="ignore"):
        worth = rate * (1 - rate) / variance
    return np.where(variance > 0, np.clip(worth, min(prompts, total), total), float(prompts))


def fisher_greater(hits: Ints, n: int, other_hits: Ints, other_n: int) -> Floats:
    """One-sided Fisher's exact p that `hits` of n is more than `other_hits` of other_n, elementwise."""
    hits, other_hits = np.broadcast_arrays(hits, other_hits)
    if (n + 1) * (other_n + 1) <= _TAILS_LIMIT:
        return np.asarray(_tails(n, other_n)[hits, other_hits])
    # Few distinct pairs of counts occur among many features: each pair's tail is computed once.
    from scipy.stats import hypergeom

    code = hits.astype(np.int64) * (other_n + 1) + other_hits
    pairs, where = np.unique(code, return_inverse=True)
    k1, k2 = pairs // (other_n + 1), pairs % (other_n + 1)
    tails = np.asarray(hypergeom.sf(k1 - 1, n + other_n, k1 + k2, n))
    clipped: Floats = np.clip(tails[where].reshape(hits.shape), 0.0, 1.0)
    return clipped


@lru_cache(maxsize=64)
def _tails(n: int, other_n: int) -> Floats:
    """The hypergeometric tail for every pair of counts: [k1, k2] is P(at least k1 of n | k1 + k2 of both)."""
    k1, k2 = np.arange(n + 1)[:, None], np.arange(other_n + 1)[None, :]
    ways = _log_choose(n, k1) + _log_choose(other_n, k2)
    tails = np.empty((n + 1, other_n + 1))
    for total in range(n + other_n + 1):
        first = np.arange(max(0, total - other_n), min(n, total) + 1)
        chance = np.exp(ways[first, total - first] - _log_choose(n + other_n, np.array(total)))
        tails[first, total - first] = np.cumsum(chance[::-1])[::-1]
    return np.minimum(tails, 1.0)


def _log_choose(n: int, k: Ints) -> Floats:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


def strongest(hits: Any, n: Ints, top: int) -> Bools:
    """For every feature, the `top` prompts on which the largest share of positions fires: ties in, silent ones out.

    `hits` is a sparse array (prompts, features) of positions that fire, `n` the positions of each prompt, at least 1.
    """
    prompts, features = hits.shape
    chosen = np.zeros((prompts, features), bool)
    columns = hits.tocsc()
    for start in range(0, features, _CHUNK):
        shares = columns[:, start : start + _CHUNK].toarray() / n[:, None]
        least = (
            np.partition(shares, prompts - top, axis=0)[prompts - top]
            if top < prompts
            else shares.min(axis=0)
        )
        chosen[:, start : start + _CHUNK] = (shares >= least) & (shares > 0)
    return chosen


def least_p(n: int, other_n: int, hits: int) -> float:
    """The smallest p that two groups of this size can give when `hits` prompts fire in all: every one in the first."""
    first = min(hits, n)
    return float(fisher_greater(np.array([first]), n, np.array([hits - first]), other_n)[0])


def benjamini_hochberg(p: Floats) -> Floats:
    """Adjusted p-values that control the false discovery rate over all of `p` (Benjamini and Hochberg 1995)."""
    order = np.argsort(p)[::-1]
    adjusted = p[order] * len(p) / np.arange(len(p), 0, -1)
    q = np.empty_like(p)
    q[order] = np.minimum(np.minimum.accumulate(adjusted), 1.0)
    return q
