"""The work of contrasting sets grows with their number, not with its square; results are exact."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from saescope.analysis import pairs, stats
from saescope.analysis.contrast import ContrastSettings, contrast
from saescope.analysis.counts import FiringCounts
from saescope.analysis.pairs import max_pairwise_p
from saescope.analysis.search import search
from saescope.store.arrays import Floats, Ints
from stored import write_run


def counts_of(sizes: list[int], rate: float, seed: int = 0) -> FiringCounts:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    n = rng.integers(1, 6, len(labels))
    hits = rng.binomial(n[:, None], rng.random((len(labels), 30)) < rate)
    hits[:, 0] = n * (labels == 0)  # in one set alone, everywhere
    hits[:, 1] = 0  # nowhere
    return FiringCounts(np.arange(30), sparse.csr_array(hits), n, labels, len(sizes))


def pairwise_p(counts: FiringCounts, i: int, j: int, column: int) -> float:
    """The definition: Fisher's exact test on two sets' prompts, those of the n highest rates."""
    rate = counts.hits.toarray()[:, column] / counts.n
    own, other = rate[counts.labels == i], rate[counts.labels == j]
    if not len(own) or not len(other):
        return 1.0
    cutoff = np.sort(np.concatenate([own, other]))[-len(own)]
    inside, outside = (
        np.array([((of_set >= cutoff) & (of_set > 0)).sum()]) for of_set in (own, other)
    )
    return float(stats.fisher_greater(inside, len(own), outside, len(other))[0])


@pytest.mark.parametrize("rate", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("sizes", [[4] * 6, [1, 9, 2, 5, 5, 30], [3, 8], [5, 0, 7]])
def test_largest_p_is_that_of_testing_every_pair(sizes: list[int], rate: float) -> None:
    counts = counts_of(sizes, rate)
    rates = counts.rates()
    for i in range(len(sizes)):
        columns = np.arange(30)
        found = max_pairwise_p(counts, np.full(30, i), columns)
        for column in columns.tolist():
            others = [j for j in range(len(sizes)) if j != i]
            expected = max(pairwise_p(counts, i, j, column) for j in others)
            if rates[i, column] <= max(rates[j, column] for j in others):
                expected = 1.0
            assert found[column] == expected


def test_tables_of_many_sizes_have_the_p_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    n, other_n = rng.integers(1, 40, (2, 500))
    hits, other_hits = rng.integers(0, n + 1), rng.integers(0, other_n + 1)
    tables = list(zip(hits, n.tolist(), other_hits, other_n.tolist(), strict=True))
    expected = [
        stats.fisher_greater(np.array([a]), b, np.array([c]), d)[0] for a, b, c, d in tables
    ]
    assert stats.fisher_greater_each(hits, n, other_hits, other_n).tolist() == expected
    monkeypatch.setattr(stats, "_MAX_TAILS", 100)  # as of large sets
    large = stats.fisher_greater_each(hits, n, other_hits, other_n)
    assert large == pytest.approx(expected, rel=1e-9)


def test_work_grows_linearly(monkeypatch: pytest.MonkeyPatch) -> None:
    tested = 0

    def count(hits: Ints, *sizes: Any) -> Floats:
        nonlocal tested
        tested += len(hits)
        return stats.fisher_greater_each(hits, *sizes)

    work = []
    for n_sets in (10, 20, 40):
        counts = _sets_with_a_feature_each(n_sets)
        tested = 0
        monkeypatch.setattr(pairs, "stats", _Counting(count))
        result = search(counts, counts, 0.05)
        monkeypatch.undo()
        assert result.confirmed.sum() == n_sets
        work.append(tested)
    assert work[2] <= 4.2 * work[0]


class _Counting:
    """`stats` with one function replaced."""

    def __init__(self, count: Any) -> None:
        self.fisher_greater_each = count


def _sets_with_a_feature_each(n_sets: int) -> FiringCounts:
    labels = np.repeat(np.arange(n_sets), 8)
    hits = (labels[:, None] == np.arange(n_sets)).astype(np.int64)
    hits[np.arange(len(labels)), (labels + 1) % n_sets] |= np.arange(len(labels)) % 8 == 0
    n = np.ones(len(labels), np.int64)
    return FiringCounts(np.arange(n_sets), sparse.csr_array(hits), n, labels, n_sets)


def test_many_sets_are_contrasted(tmp_path: Path) -> None:
    n_sets, n_prompts, length = 60, 6, 3
    set_of_token = np.repeat(np.arange(n_sets), n_prompts * length)
    fires = set_of_token[:, None] == np.arange(n_sets)
    lengths = {f"set{i}": [length] * n_prompts for i in range(n_sets)}
    run = write_run(tmp_path / "run", lengths, {1: fires})
    result = contrast(run, ContrastSettings(shuffles=1))
    for i, one in enumerate(result.layers[1].sets.values()):
        assert one.features[0].feature.id == i
        assert (one.features[0].rate, one.features[0].other_rate) == (1.0, 0.0)
