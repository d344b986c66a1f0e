"""Rates with intervals, means over what is known, and an exact test."""

from collections.abc import Sequence

import numpy as np
from scipy.special import betainc

from saescope.analysis import stats


def share(flags: Sequence[bool]) -> float | None:
    """The share of true values; None if there are no values."""
    if not flags:
        return None
    return sum(flags) / len(flags)


def mean_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return float(np.mean(known))


def wilson_interval(rate: float | None, n: float | int) -> tuple[float, float]:
    """The 95 % interval of a rate over n replies; (0, 1) if there are none."""
    low, high = stats.wilson(rate or 0.0, n)
    return float(low), float(high)


def mcnemar(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Exact two-sided p-value that before and after differ (McNemar 1947, binomial form).

    Only pairs that differ count: under the null hypothesis each is a fair coin.
    """
    gone = sum(before and not after for before, after in pairs)
    come = sum(after and not before for before, after in pairs)
    if gone == come:
        return 1.0
    fewer, more = sorted((gone, come))
    # P(at most `fewer` heads in `fewer + more` fair coins), by the incomplete beta function.
    one_sided = float(betainc(more, fewer + 1, 0.5))
    return min(1.0, 2 * one_sided)
