"""The search for features that set a set apart.

Features are proposed on discovery prompts and confirmed on held-out ones. For a set of n prompts,
the screen counts how many of them are among the n prompts on which a feature fires most, and how
probable as many are by chance (Fisher's exact test). Which prompts those are does not depend on
labels, so one screen serves every labelling with the same set sizes, and the test serves rare
features as well as those that fire in every prompt, but more in these.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from saescope.analysis import stats
from saescope.analysis.counts import FiringCounts
from saescope.analysis.rates import largest_other
from saescope.errors import PromptError
from saescope.store.arrays import Bools, Floats, Ints


@dataclass(frozen=True)
class SearchResult:
    """What the search finds, (sets, features): p and q against all other prompts on discovery.

    `candidates` are proposed on discovery prompts, `confirmed` on held-out ones too. `tested`
    (features,) fire on enough prompts to be significant under some labelling.
    """

    p: Floats
    q: Floats
    tested: Bools
    candidates: Bools
    confirmed: Bools


def search(discovery: FiringCounts, holdout: FiringCounts, alpha: float) -> SearchResult:
    """Propose with a false discovery rate of `alpha` over the dictionary, then confirm.

    The same rate holds for confirming, over the proposed features.
    """
    tested = _testable(discovery, alpha)
    return _search(discovery, holdout, _most_firing(discovery), tested, alpha)


def shuffled_confirmed(
    discovery: FiringCounts,
    holdout: FiringCounts,
    alpha: float,
    shuffles: int,
    rng: np.random.Generator,
) -> int:
    """The null control: features confirmed in `shuffles` searches with shuffled labels, in all.

    Labels are shuffled within discovery prompts and within held-out prompts.
    """
    if shuffles == 0:
        return 0
    tested = _testable(discovery, alpha)
    discovery, holdout = discovery.of_features(tested), holdout.of_features(tested)
    most_firing = _most_firing(discovery)
    all_tested = np.ones(int(tested.sum()), bool)
    confirmed = 0
    for _ in range(shuffles):
        shuffled_discovery = replace(discovery, labels=rng.permutation(discovery.labels))
        shuffled_holdout = replace(holdout, labels=rng.permutation(holdout.labels))
        result = _search(shuffled_discovery, shuffled_holdout, most_firing, all_tested, alpha)
        confirmed += int(result.confirmed.sum())
    return confirmed


def hardest_p(counts: FiringCounts, i: int) -> Floats:
    """The largest p of set i against each other set; 1 unless its rate is above all others."""
    rates = counts.rates()
    p = np.where(rates[i] > largest_other(rates, i), 0.0, 1.0)
    for j in range(counts.n_sets):
        if j != i:
            rows = (counts.labels == i) | (counts.labels == j)
            in_set = counts.labels[rows] == i
            p = np.maximum(p, _pair_p(counts.hits[rows], counts.n[rows], in_set))
    return p


def check_alpha(alpha: float) -> None:
    """Raises PromptError if `alpha` is not a false discovery rate."""
    if not 0 < alpha < 1:
        raise PromptError(f"alpha must lie between 0 and 1, got {alpha:g}")


def _search(
    discovery: FiringCounts,
    holdout: FiringCounts,
    most_firing: Mapping[int, Bools],
    tested: Bools,
    alpha: float,
) -> SearchResult:
    p = _screen(discovery, most_firing)
    q = np.ones_like(p)
    candidates, confirmed = np.zeros(p.shape, bool), np.zeros(p.shape, bool)
    for i in range(discovery.n_sets):
        q[i, tested] = stats.benjamini_hochberg(p[i, tested])
        proposed = _hold_against_each(discovery, i, np.flatnonzero(q[i] <= alpha), alpha)
        if len(proposed):
            candidates[i, proposed] = True
            # Held-out prompts had no part in proposing, so their own false discovery rate holds.
            holdout_p = hardest_p(holdout.of_features(proposed), i)
            confirmed[i, proposed] = stats.benjamini_hochberg(holdout_p) <= alpha
    return SearchResult(p, q, tested, candidates, confirmed)


def _hold_against_each(counts: FiringCounts, i: int, features: Ints, alpha: float) -> Ints:
    """Those of the features that set i fires more than each other set alone."""
    if not len(features):
        return features
    return np.asarray(features[hardest_p(counts.of_features(features), i) <= alpha])


def _most_firing(counts: FiringCounts) -> dict[int, Bools]:
    """For each size of a set, the prompts (rows) on which each feature (column) fires most."""
    sizes = set(counts.prompts_per_set.tolist()) - {0}
    return {size: stats.strongest(counts.hits, counts.n, size) for size in sizes}


def _screen(counts: FiringCounts, most_firing: Mapping[int, Bools]) -> Floats:
    """p of every set against all other prompts, (sets, features); 1 for a set without prompts."""
    n_prompts = len(counts.n)
    p = np.ones((counts.n_sets, counts.hits.shape[1]))
    for i, size in enumerate(counts.prompts_per_set.tolist()):
        if 0 < size < n_prompts:
            p[i] = _fisher(most_firing[size], counts.labels == i)
    return p


def _pair_p(hits: Any, n: Ints, in_set: Bools) -> Floats:
    size = int(in_set.sum())
    if size in (0, len(n)):
        return np.ones(hits.shape[1])
    return _fisher(stats.strongest(hits, n, size), in_set)


def _fisher(most_firing: Bools, in_set: Bools) -> Floats:
    """p that more of the set's prompts than of the others' are among the most firing ones."""
    inside = most_firing[in_set].sum(0)
    outside = most_firing.sum(0) - inside
    size = int(in_set.sum())
    return stats.fisher_greater(inside, size, outside, len(in_set) - size)


def _testable(counts: FiringCounts, alpha: float) -> Bools:
    """Features that fire on enough prompts for some labelling to be significant at `alpha`.

    The choice looks at how many prompts a feature fires on, never in which set, so the false
    discovery rate over the rest holds (Tarone 1990, Gilbert 2005); features that fire on one
    prompt would only dilute it.
    """
    total = len(counts.n)
    smallest = int(counts.prompts_per_set.min(initial=total))
    for fired in range(1, total + 1):
        if stats.least_p(smallest, total - smallest, fired) <= alpha:
            return np.asarray(counts.prompts_fired() >= fired)
    return np.zeros(counts.hits.shape[1], bool)
