"""Figures of an arm's replies: rates with intervals, an exact test, right answers, languages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc

from saescope.analysis import stats
from saescope.control.evaluation.judge import Label, normalised, shows_behaviour
from saescope.sources.prompts import Prompt


@dataclass(frozen=True)
class Rate:
    """The share of scored replies that show the behaviour, and its 95 % interval (Wilson)."""

    rate: float | None
    "None if no reply could be scored."

    ci: tuple[float, float]
    scored: int


def behaviour_rate(labels: Sequence[Label]) -> Rate:
    """The rate over all labels but empty and unscored ones."""
    scored = [shown for shown in map(shows_behaviour, labels) if shown is not None]
    rate = share(scored)
    return Rate(rate, wilson_interval(rate, len(scored)), len(scored))


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


def right_rate(
    prompts: Sequence[Prompt], replies: Sequence[str], answers: Mapping[str, str]
) -> float | None:
    """The share of replies that equal the right answer, over prompts that have one."""
    right = [
        normalised(reply) == normalised(answers[prompt.id])
        for prompt, reply in zip(prompts, replies, strict=True)
        if prompt.id in answers
    ]
    return share(right)


def share_changed(before: Sequence[str | None], after: Sequence[str | None]) -> float | None:
    """The share of pairs that differ, over pairs of which both are known."""
    pairs = zip(before, after, strict=True)
    return share([old != new for old, new in pairs if old is not None and new is not None])


def share(flags: Sequence[bool]) -> float | None:
    """The share of true values; None if there are no values."""
    return sum(flags) / len(flags) if flags else None


def mean_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
