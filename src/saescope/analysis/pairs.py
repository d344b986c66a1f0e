"""Is a feature's rate in one set above that in every other set? Exact tests of pairs of sets.

Most features fire in few sets. Only these are tested one by one: of all sets in which a feature
does not fire, the smallest has the largest p. So the work grows with the number of firings and not
with the number of pairs of sets.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from saescope.analysis import stats
from saescope.analysis.counts import FiringCounts
from saescope.store.arrays import Bools, Floats, Ints

_MOST_ENTRIES = 2_000_000  # at a time


def max_pairwise_p(counts: FiringCounts, sets: Ints, columns: Ints) -> Floats:
    """Return the largest p of each (set, feature) over the other sets, one per pair.

    It is 1 if the rate is not above all others, or if another set has no prompts. This is an
    intersection-union test: a set must exceed every other set, so its p is the largest pairwise p,
    without correction for the number of sets.
    """
    sizes = counts.prompts_per_set
    leads = counts.rates()[sets, columns] > counts.leaders.largest_other(sets, columns)
    other_is_empty = (sizes == 0).sum() > (sizes[sets] == 0)
    p = np.ones(len(sets))
    rows = np.flatnonzero(leads & ~other_is_empty)
    fired = np.diff(counts.by_feature.indptr)[columns[rows]]
    # A set's prompts are compared with each other set in which the feature fires.
    entries = fired + sizes[sets[rows]] * np.minimum(fired, counts.n_sets)
    for chunk in _chunks(rows, entries):
        p[chunk] = _largest_p(counts, sets[chunk], columns[chunk])
    return p


def _chunks(rows: Ints, entries: Ints) -> Iterator[Ints]:
    number = np.cumsum(entries, dtype=np.int64) // _MOST_ENTRIES
    _, starts = np.unique(number, return_index=True)
    yield from np.split(rows, starts[1:]) if len(rows) else ()


@dataclass(frozen=True)
class _Firings:
    """Prompts on which features fire, sorted by row: a pair (set, feature) that is tested."""

    row: Ints
    label: Ints
    rate: Floats

    def take(self, entries: Bools | Ints) -> "_Firings":
        return _Firings(self.row[entries], self.label[entries], self.rate[entries])


def _largest_p(counts: FiringCounts, sets: Ints, columns: Ints) -> Floats:
    firings = _firings(counts, columns)
    sizes = counts.prompts_per_set
    is_own = firings.label == sets[firings.row]
    own, other = firings.take(is_own), firings.take(~is_own)
    own_fired = np.bincount(own.row, minlength=len(sets))
    pairs, pair_of_other = np.unique(other.row * counts.n_sets + other.label, return_inverse=True)
    pair_of_other = pair_of_other.reshape(-1)
    row, label = np.divmod(pairs, counts.n_sets)
    n, other_n = sizes[sets[row]], sizes[label]
    inside, outside = own_fired[row], np.bincount(pair_of_other, minlength=len(pairs))
    # Among more firings than the set has prompts, those with the highest rates are counted.
    is_crowded = inside + outside > n
    crowded, of_crowded = np.flatnonzero(is_crowded), is_crowded[pair_of_other]
    if len(crowded):
        pair = np.searchsorted(crowded, pair_of_other[of_crowded])
        rates = other.rate[of_crowded]
        inside[crowded], outside[crowded] = _among_top(own, row[crowded], n[crowded], pair, rates)
    p = np.zeros(len(sets))
    np.maximum.at(p, row, stats.fisher_greater_each(inside, n, outside, other_n))
    silent_size = _smallest_silent(firings, sizes, len(sets))
    rows = np.flatnonzero(silent_size > 0)
    nothing = np.zeros(len(rows), np.int64)
    silent_p = stats.fisher_greater_each(
        own_fired[rows], sizes[sets[rows]], nothing, silent_size[rows]
    )
    p[rows] = np.maximum(p[rows], silent_p)
    return p


def _firings(counts: FiringCounts, columns: Ints) -> _Firings:
    by_feature = counts.by_feature
    starts, lengths = by_feature.indptr[columns], np.diff(by_feature.indptr)[columns]
    row = np.repeat(np.arange(len(columns)), lengths)
    ends = np.cumsum(lengths, dtype=np.int64)
    entry = np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)
    prompt = by_feature.indices[entry]
    return _Firings(row, counts.labels[prompt], by_feature.data[entry] / counts.n[prompt])


def _among_top(
    own: _Firings, row: Ints, n: Ints, other_pair: Ints, other_rate: Floats
) -> tuple[Ints, Ints]:
    """Count a set's and the other set's prompts among the n with the highest rates, per pair.

    Ties with the n-th are included. `row` and `n` are of the pairs, `other_pair` and `other_rate`
    of the other sets' firings.
    """
    own_lengths = np.bincount(own.row, minlength=int(row.max()) + 1)
    own_starts = np.cumsum(own_lengths) - own_lengths
    lengths = own_lengths[row]
    ends = np.cumsum(lengths, dtype=np.int64)
    own_pair = np.repeat(np.arange(len(row)), lengths)
    entry = np.arange(lengths.sum()) + np.repeat(own_starts[row] - (ends - lengths), lengths)
    pair = np.concatenate([own_pair, other_pair])
    rate = np.concatenate([own.rate[entry], other_rate])
    is_own = np.arange(len(pair)) < len(own_pair)
    counted = ahead(pair, rate) < n[pair]
    inside = np.bincount(pair[counted & is_own], minlength=len(row))
    return inside, np.bincount(pair[counted & ~is_own], minlength=len(row))


def ahead(group: Ints, rate: Floats) -> Ints:
    """Return how many members of an entry's group have a higher rate, (entries,)."""
    order = np.lexsort((-rate, group))
    group, rate = group[order], rate[order]
    entry = np.arange(len(order))
    begins_group = np.diff(group, prepend=-1) != 0
    begins_tie = begins_group | (np.diff(rate, prepend=-1.0) != 0)
    tie_start = np.maximum.accumulate(np.where(begins_tie, entry, 0))
    group_start = np.maximum.accumulate(np.where(begins_group, entry, 0))
    higher = np.empty(len(order), np.int64)
    higher[order] = tie_start - group_start
    return higher


def _smallest_silent(firings: _Firings, sizes: Ints, n_rows: int) -> Ints:
    """Return the size of the smallest set in which a row's feature does not fire; 0 if none."""
    by_size = np.argsort(sizes, kind="stable")
    place = np.empty(len(sizes), np.int64)
    place[by_size] = np.arange(len(sizes))
    row, taken = np.divmod(np.unique(firings.row * len(sizes) + place[firings.label]), len(sizes))
    n_taken = np.bincount(row, minlength=n_rows)
    starts = np.cumsum(n_taken) - n_taken
    # The places taken are ascending: the first gap is where a place is beyond its index.
    index = np.arange(len(row)) - starts[row]
    gap = n_taken.copy()
    np.minimum.at(gap, row[taken != index], index[taken != index])
    size = np.zeros(n_rows, np.int64)
    has_gap = gap < len(sizes)
    size[has_gap] = sizes[by_size[gap[has_gap]]]
    return size
