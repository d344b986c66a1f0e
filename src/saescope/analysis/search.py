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

import numpy as np

from saescope.analysis import stats
from saescope.analysis.counts import FiringCounts
from saescope.analysis.pairs import ahead, max_pairwise_p
from saescope.sources.splits import DISCOVERY_SHARE
from saescope.store.arrays import Bools, Floats, Ints


@dataclass(frozen=True)
class SearchResult:
    """Result of the search, as arrays (sets, features).

    `p` and `q` compare a set with all other discovery prompts. `candidates` are proposed on
    discovery prompts; `confirmed` also hold on held-out ones: their `holdout_q`, the candidates'
    adjusted p there, is at most alpha (1 if not a candidate). `tested` (features,) marks features
    that fire on enough prompts to be able to reach significance under some labelling.
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
    return _search(discovery, holdout, _Ranking.of(discovery), tested, alpha)


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
    ranking = _Ranking.of(discovery)
    all_tested = np.ones(int(tested.sum()), bool)
    confirmed = 0
    for _ in range(shuffles):
        shuffled_discovery = replace(discovery, labels=rng.permutation(discovery.labels))
        shuffled_holdout = replace(holdout, labels=rng.permutation(holdout.labels))
        result = _search(shuffled_discovery, shuffled_holdout, ranking, all_tested, alpha)
        confirmed += int(result.confirmed.sum())
    return confirmed


@dataclass(frozen=True)
class _Ranking:
    """Every firing of a feature on a prompt, and how many prompts have a higher rate of it.

    Labels play no part in it.
    """

    feature: Ints
    prompt: Ints
    ahead: Ints

    @classmethod
    def of(cls, counts: FiringCounts) -> "_Ranking":
        hits = counts.by_feature
        feature = np.repeat(np.arange(hits.shape[1]), np.diff(hits.indptr))
        return cls(feature, hits.indices, ahead(feature, hits.data / counts.n[hits.indices]))


def _search(
    discovery: FiringCounts,
    holdout: FiringCounts,
    ranking: _Ranking,
    tested: Bools,
    alpha: float,
) -> SearchResult:
    p = _screen(discovery, ranking)
    q = np.ones_like(p)
    for i in range(discovery.n_sets):
        q[i, tested] = stats.benjamini_hochberg(p[i, tested])
    candidates, holdout_q = np.zeros(p.shape, bool), np.ones_like(p)
    # Only the set with the highest rate can exceed every other set.
    leader = discovery.leaders.first
    significant = np.flatnonzero(q[leader, np.arange(len(leader))] <= alpha)
    beats_others = max_pairwise_p(discovery, leader[significant], significant) <= alpha
    proposed = significant[beats_others]
    if len(proposed):
        candidates[leader[proposed], proposed] = True
        # Held-out prompts were not used for selection, so BH over the candidates is valid.
        columns = np.arange(len(proposed))
        holdout_p = max_pairwise_p(holdout.of_features(proposed), leader[proposed], columns)
        for i in np.unique(leader[proposed]).tolist():
            of_set = leader[proposed] == i
            holdout_q[i, proposed[of_set]] = stats.benjamini_hochberg(holdout_p[of_set])
    confirmed = candidates & (holdout_q <= alpha)
    return SearchResult(p, q, tested, candidates, confirmed, holdout_q)


def _screen(counts: FiringCounts, ranking: _Ranking) -> Floats:
    """Return p of every set against all other prompts, (sets, features); 1 for an empty set.

    Of a set of n prompts, those count that have one of the n highest rates.
    """
    n_prompts, n_features = len(counts.n), counts.hits.shape[1]
    sizes, label = counts.prompts_per_set, counts.labels[ranking.prompt]
    counted = ranking.ahead < sizes[label]
    cell = label[counted] * n_features + ranking.feature[counted]
    shape = (counts.n_sets, n_features)
    inside = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    among_top = {
        size: np.bincount(ranking.feature[ranking.ahead < size], minlength=n_features)
        for size in set(sizes.tolist())
    }
    p = np.ones(shape)
    for i, size in enumerate(sizes.tolist()):
        if 0 < size < n_prompts:
            outside = among_top[size] - inside[i]
            p[i] = stats.fisher_greater(inside[i], size, outside, n_prompts - size)
    return p


def _testable(counts: FiringCounts, alpha: float) -> Bools:
    """Return which features fire on enough prompts to be able to reach p ≤ `alpha`, (features,).

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
    if len(holdout) < 2:
        return []
    smallest, next_smallest = sorted(holdout.values())[:2]
    weak = []
    for name, n in holdout.items():
        other_n = next_smallest if n == smallest else smallest
        # The smallest p is that of a feature which fires on all prompts of the set and no other.
        if stats.min_attainable_p(n, other_n, n) > alpha:
            weak.append(name)
    if not weak:
        return []
    counts = ", ".join(f"{name} {holdout[name]}" for name in weak)
    needed = _needed_holdout(alpha)
    return [
        f"too few held-out prompts for a feature of these sets to be confirmed at alpha {alpha:g}: "
        f"{counts}; with {needed} or more in every set, about {_prompts_for(needed)} prompts, it "
        "could be"
    ]


def _needed_holdout(alpha: float) -> int:
    """Return how many held-out prompts per set suffice if all sets have as many."""
    return next(n for n in count(1) if stats.min_attainable_p(n, n, n) <= alpha)


def _prompts_for(needed: int) -> int:
    """Return how many prompts of a set leave this many held out."""
    return next(n for n in count(needed) if n - round(DISCOVERY_SHARE * n) >= needed)
