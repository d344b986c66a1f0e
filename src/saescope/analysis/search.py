"""The search for features that set a set apart: proposed on discovery prompts, confirmed on held-out ones.

Of a set of n prompts, the screen asks how many are among the n on which the feature fires most, and how probable as
many are by chance (Fisher's exact test). Which prompts those are does not depend on labels, so one screen serves every
labelling with the same set sizes, and the test serves features that are rare as well as those that fire in every
prompt, but more in these.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from saescope.analysis import stats
from saescope.analysis.counts import Counts
from saescope.analysis.stats import Bools, Floats, Ints
from saescope.errors import PromptError


@dataclass(frozen=True)
class Found:
    """By set and feature: what the discovery part proposes (p, q against all other prompts) and the rest confirms.

    `tested` are the features that fire on enough prompts to be significant under some labelling.
    """

    p: Floats
    q: Floats
    tested: Bools
    candidates: Bools
    confirmed: Bools


def check_alpha(alpha: float) -> None:
    """Raises PromptError if `alpha` is no false discovery rate."""
    if not 0 < alpha < 1:
        raise PromptError(f"alpha must lie between 0 and 1, got {alpha:g}")


def find(discovery: Counts, holdout: Counts, alpha: float) -> Found:
    """Propose with a false discovery rate of `alpha` over the dictionary, confirm at the same over the proposed."""
    tested = _testable(discovery, alpha)
    return _find(discovery, holdout, _strongest(discovery), tested, alpha)


def shuffled_confirmed(
    discovery: Counts, holdout: Counts, alpha: float, shuffles: int, rng: np.random.Generator
) -> int:
    """Features confirmed in all of `shuffles` searches with labels shuffled within each part: a control."""
    if not shuffles:
        return 0
    tested = _testable(discovery, alpha)
    discovery, holdout = discovery.columns(tested), holdout.columns(tested)
    chosen, every = _strongest(discovery), np.ones(int(tested.sum()), bool)
    confirmed = 0
    for _ in range(shuffles):
        halves = [
            replace(part, labels=rng.permutation(part.labels)) for part in (discovery, holdout)
        ]
        confirmed += int(_find(halves[0], halves[1], chosen, every, alpha).confirmed.sum())
    return confirmed


def hardest_p(counts: Counts, i: int) -> Floats:
    """The largest p of set i against each other set alone; 1 where its rate is not above every other one."""
    rates = counts.rates()
    p = np.where(rates[i] > np.delete(rates, i, axis=0).max(axis=0), 0.0, 1.0)
    for j in range(counts.n_sets):
        if i != j:
            rows = (counts.labels == i) | (counts.labels == j)
            p = np.maximum(p, _pair_p(counts.hits[rows], counts.n[rows], counts.labels[rows] == i))
    return p


def _find(
    discovery: Counts, holdout: Counts, chosen: Mapping[int, Bools], tested: Bools, alpha: float
) -> Found:
    p = _screen(discovery, chosen)
    q, candidates, confirmed = np.ones_like(p), np.zeros(p.shape, bool), np.zeros(p.shape, bool)
    for i in range(discovery.n_sets):
        q[i, tested] = stats.benjamini_hochberg(p[i, tested])
        proposed = np.flatnonzero(q[i] <= alpha)
        if len(proposed):
            proposed = proposed[hardest_p(discovery.columns(proposed), i) <= alpha]
        if len(proposed):
            candidates[i, proposed] = True
            # Held-out prompts had no part in proposing: their own rate of false discoveries is controlled by itself.
            confirmed[i, proposed] = (
                stats.benjamini_hochberg(hardest_p(holdout.columns(proposed), i)) <= alpha
            )
    return Found(p, q, tested, candidates, confirmed)


def _strongest(counts: Counts) -> dict[int, Bools]:
    """For each size of a set, the prompts (rows) on which each feature (column) fires most."""
    sizes = np.bincount(counts.labels, minlength=counts.n_sets)
    return {
        size: stats.strongest(counts.hits, counts.n, size) for size in set(sizes.tolist()) if size
    }


def _screen(counts: Counts, chosen: Mapping[int, Bools]) -> Floats:
    """p of every set against all other prompts, by set and feature; 1 for a set without prompts."""
    p = np.ones((counts.n_sets, counts.hits.shape[1]))
    for i, size in enumerate(np.bincount(counts.labels, minlength=counts.n_sets).tolist()):
        if 0 < size < len(counts.n):
            inside = chosen[size][counts.labels == i].sum(0)
            p[i] = stats.fisher_greater(
                inside, size, chosen[size].sum(0) - inside, len(counts.n) - size
            )
    return p


def _testable(counts: Counts, alpha: float) -> Bools:
    """Features that fire on enough prompts for some labelling to be significant at `alpha`.

    The choice looks at how many prompts a feature fires on, never in which set, so the false discovery rate over the
    rest holds (Tarone 1990, Gilbert 2005); features that fire on one prompt would only dilute it.
    """
    sizes, total = np.bincount(counts.labels, minlength=counts.n_sets), len(counts.n)
    size = int(sizes.min(initial=total))
    enough = (t for t in range(1, total + 1) if stats.least_p(size, total - size, t) <= alpha)
    return counts.prompts_fired() >= next(enough, total + 1)


def _pair_p(hits: Any, n: Ints, first: Bools) -> Floats:
    size = int(first.sum())
    if size in (0, len(n)):
        return np.ones(hits.shape[1])
    chosen = stats.strongest(hits, n, size)
    inside = chosen[first].sum(0)
    return stats.fisher_greater(inside, size, chosen.sum(0) - inside, len(n) - size)
