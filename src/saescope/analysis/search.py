"""The search for features that set a set apart.

Features are proposed on discovery prompts and confirmed on held-out ones. For a set of n prompts:
rank all prompts by the feature's firing rate, take the top n, and test with Fisher's exact test
whether the set is over-represented among them. The ranking ignores labels, so it is computed once
for all label permutations. The test works for rare features and for dense features that are
merely more frequent in the set.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np

from saescope.analysis import stats
from saescope.analysis.counts import FiringCounts
from saescope.analysis.rates import largest_other
from saescope.sources.splits import DISCOVERY_SHARE
from saescope.store.arrays import Bools, Floats, Ints


@dataclass(frozen=True)
class SearchResult:
    """Result of the search, as arrays (sets, features).

    `p` and `q` compare a set with all other discovery prompts. `candidates` are proposed on
    discovery prompts; `confirmed` also hold on held-out ones: their `holdout_q`, the candidates'
    adjusted p there, is at most alpha (1 if not a candidate). `tested` (features,) marks features
    that fire on enough prompts to be significant under some labelling.
    """

    p: Floats
    q: Floats
    tested: Bools
    candidates: Bools
    confirmed: Bools
    holdout_q: Floats


def search(discovery: FiringCounts, holdout: FiringCounts, alpha: float) -> SearchResult:
    """Propose candidates on discovery prompts, then confirm them on held-out prompts.

    Each step controls the false discovery rate at `alpha`: the first over the features that could
    reach significance, the second over the candidates.
    """
    tested = _testable(discovery, alpha)
    return _search(discovery, holdout, _top_prompts(discovery), tested, alpha)


def shuffled_confirmed(
    discovery: FiringCounts,
    holdout: FiringCounts,
    alpha: float,
    shuffles: int,
    rng: np.random.Generator,
) -> int:
    """Total number of features confirmed in `shuffles` searches with shuffled labels.

    This is the null control. Labels are shuffled within discovery prompts and within held-out
    prompts.
    """
    if shuffles == 0:
        return 0
    tested = _testable(discovery, alpha)
    discovery, holdout = discovery.of_features(tested), holdout.of_features(tested)
    top_prompts = _top_prompts(discovery)
    all_tested = np.ones(int(tested.sum()), bool)
    confirmed = 0
    for _ in range(shuffles):
        shuffled_discovery = replace(discovery, labels=rng.permutation(discovery.labels))
        shuffled_holdout = replace(holdout, labels=rng.permutation(holdout.labels))
        result = _search(shuffled_discovery, shuffled_holdout, top_prompts, all_tested, alpha)
        confirmed += int(result.confirmed.sum())
    return confirmed


def max_pairwise_p(counts: FiringCounts, i: int) -> Floats:
    """Return the largest p of set i over the other sets; 1 unless its rate is above all others.

    This is an intersection-union test: set i must exceed every other set, so its p is the largest
    pairwise p, without correction for the number of sets.
    """
    rates = counts.rates()
    p = np.where(rates[i] > largest_other(rates, i), 0.0, 1.0)
    for j in range(counts.n_sets):
        if j != i:
            in_pair = (counts.labels == i) | (counts.labels == j)
            in_set = counts.labels[in_pair] == i
            p = np.maximum(p, _pair_p(counts.hits[in_pair], counts.n[in_pair], in_set))
    return p


def _search(
    discovery: FiringCounts,
    holdout: FiringCounts,
    top_prompts: Mapping[int, Bools],
    tested: Bools,
    alpha: float,
) -> SearchResult:
    p = _screen(discovery, top_prompts)
    q, holdout_q = np.ones_like(p), np.ones_like(p)
    candidates = np.zeros(p.shape, bool)
    for i in range(discovery.n_sets):
        q[i, tested] = stats.benjamini_hochberg(p[i, tested])
        significant = np.flatnonzero(q[i] <= alpha)
        proposed = _beats_every_other_set(discovery, i, significant, alpha)
        if len(proposed):
            candidates[i, proposed] = True
            # Held-out prompts were not used for selection, so BH over the candidates is valid.
            holdout_p = max_pairwise_p(holdout.of_features(proposed), i)
            holdout_q[i, proposed] = stats.benjamini_hochberg(holdout_p)
    confirmed = candidates & (holdout_q <= alpha)
    return SearchResult(p, q, tested, candidates, confirmed, holdout_q)


def _beats_every_other_set(counts: FiringCounts, i: int, features: Ints, alpha: float) -> Ints:
    """Return the features whose rate in set i exceeds every other set's in a pairwise test."""
    if not len(features):
        return features
    return np.asarray(features[max_pairwise_p(counts.of_features(features), i) <= alpha])


def _top_prompts(counts: FiringCounts) -> dict[int, Bools]:
    """Return the top prompts of each feature, (prompts, features), by size of a set."""
    sizes = set(counts.prompts_per_set.tolist()) - {0}
    return {size: stats.top_prompts(counts.hits, counts.n, size) for size in sizes}


def _screen(counts: FiringCounts, top_prompts: Mapping[int, Bools]) -> Floats:
    """Return p of every set against all other prompts, (sets, features); 1 for an empty set."""
    n_prompts = len(counts.n)
    p = np.ones((counts.n_sets, counts.hits.shape[1]))
    for i, size in enumerate(counts.prompts_per_set.tolist()):
        if 0 < size < n_prompts:
            p[i] = _fisher(top_prompts[size], counts.labels == i)
    return p


def _pair_p(hits: Any, n: Ints, in_set: Bools) -> Floats:
    size = int(in_set.sum())
    if size in (0, len(n)):
        return np.ones(hits.shape[1])
    return _fisher(stats.top_prompts(hits, n, size), in_set)


def _fisher(top_prompts: Bools, in_set: Bools) -> Floats:
    """Return the one-sided Fisher p for over-representation of the set among the top prompts."""
    inside = top_prompts[in_set].sum(0)
    outside = top_prompts.sum(0) - inside
    size = int(in_set.sum())
    return stats.fisher_greater(inside, size, outside, len(in_set) - size)


def _testable(counts: FiringCounts, alpha: float) -> Bools:
    """Return which features fire on enough prompts to be significant at `alpha`, (features,).

    The filter is independent of the labels, so BH over the remaining features is valid (Tarone
    1990, Gilbert 2005). Features that could never reach significance would only cost power.
    """
    total = len(counts.n)
    smallest = int(counts.prompts_per_set.min(initial=total))
    for fired in range(1, total + 1):
        if stats.min_attainable_p(smallest, total - smallest, fired) <= alpha:
            return np.asarray(counts.prompts_fired() >= fired)
    return np.zeros(counts.hits.shape[1], bool)


def power_warnings(holdout: Mapping[str, int], alpha: float) -> list[str]:
    """Return a line that names the sets with too few held-out prompts for any confirmation.

    `holdout` is the number of held-out prompts per set.
    """
    weak = [name for name in holdout if not _confirmable(holdout, name, alpha)]
    if not weak:
        return []
    counts = ", ".join(f"{name} {holdout[name]}" for name in weak)
    needed = _needed_holdout(alpha)
    return [
        f"too few held-out prompts for a feature of these sets to be confirmed at alpha {alpha:g}: "
        f"{counts}; with {needed} or more in every set, about {_prompts_for(needed)} prompts, it "
        "could be"
    ]


def _confirmable(holdout: Mapping[str, int], name: str, alpha: float) -> bool:
    """Whether a feature could be significant against each other set.

    The smallest p is that of a feature which fires on all prompts of the set and on no other.
    """
    n = holdout[name]
    others = [other_n for other, other_n in holdout.items() if other != name]
    return all(stats.min_attainable_p(n, other_n, n) <= alpha for other_n in others)


def _needed_holdout(alpha: float) -> int:
    """Return how many held-out prompts per set suffice if all sets have as many."""
    return next(n for n in count(1) if stats.min_attainable_p(n, n, n) <= alpha)


def _prompts_for(needed: int) -> int:
    """Return how many prompts of a set leave this many held out."""
    return next(n for n in count(needed) if n - round(DISCOVERY_SHARE * n) >= needed)
