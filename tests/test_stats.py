"""Statistics where the answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, fisher_exact

from saescope.analysis import stats


@given(st.integers(1, 200), st.integers(0, 200))
def test_wilson_equals_scipy(n: int, hits: int) -> None:
    hits = min(hits, n)
    low, high = stats.wilson(hits / n, n)
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert (float(low), float(high)) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert low <= hits / n <= high


def test_wilson_of_no_trials_is_0_to_1() -> None:
    assert tuple(map(float, stats.wilson(0.0, 0))) == (0.0, 1.0)
    assert float(stats.wilson(0 / 30, 30)[1]) == pytest.approx(0.1135, abs=1e-4)


def test_wilson_covers_at_its_rate() -> None:
    n = 30
    for rate in (0.05, 0.2, 0.5, 0.9):
        hits = np.arange(n + 1)
        low, high = stats.wilson(hits / n, n)
        covered = binom.pmf(hits, n, rate)[(low <= rate) & (rate <= high)].sum()
        assert 0.92 < covered < 0.99


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_fisher_equals_scipy(n: int, other_n: int, data: st.DataObject) -> None:
    hits, other = data.draw(st.integers(0, n)), data.draw(st.integers(0, other_n))
    expected = fisher_exact(
        [[hits, n - hits], [other, other_n - other]], alternative="greater"
    ).pvalue
    p_value = stats.fisher_greater(np.array([hits]), n, np.array([other]), other_n)
    assert float(p_value[0]) == pytest.approx(expected, rel=1e-6)


def test_min_attainable_p_is_all_against_none() -> None:
    assert stats.min_attainable_p(12, 12, 12) == pytest.approx(1 / 2704156)  # C(24, 12)


def test_benjamini_hochberg_by_hand() -> None:
    q = stats.benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.5]))
    np.testing.assert_allclose(q, [0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert len(stats.benjamini_hochberg(np.array([]))) == 0


def test_tokens_of_alike_prompts_are_worth_their_prompts() -> None:
    n = np.full(20, 10)
    alike = np.where(np.arange(20) < 10, 10, 0)[:, None]  # a prompt fires everywhere or nowhere
    assert stats.effective_n(alike, n)[0] == pytest.approx(20, rel=0.06)
    # No variation: nothing says it is more.
    assert stats.effective_n(np.full((20, 1), 10), n)[0] == 20


def test_independent_tokens_are_worth_themselves() -> None:
    rng = np.random.default_rng(0)
    n = np.full(400, 10)
    worth = stats.effective_n(rng.binomial(10, 0.3, size=(400, 50)), n)
    assert np.median(worth) == pytest.approx(4000, rel=0.1)


def test_clustered_intervals_cover_at_their_rate() -> None:
    rng = np.random.default_rng(1)
    rates = rng.beta(2, 3, size=(60, 2000))  # each prompt has its own rate; mean 0.4
    hits, n = rng.binomial(12, rates), np.full(60, 12)
    mean = hits.sum(0) / n.sum()
    low, high = stats.wilson(mean, stats.effective_n(hits, n))
    assert 0.93 < ((low <= 0.4) & (high >= 0.4)).mean() < 0.97
    plain_low, plain_high = stats.wilson(mean, int(n.sum()))
    assert (
        (plain_low <= 0.4) & (plain_high >= 0.4)
    ).mean() < 0.85  # what ignoring the prompts would claim


def test_interval_of_a_difference_is_the_published_one() -> None:
    # Newcombe 1998, table II, row (a), method 10.
    rates, n = (
        np.array([56 / 70, 48 / 80]),
        np.array([70, 80]),
    )
    first, second = (stats.wilson(rates[i : i + 1], n[i : i + 1]) for i in (0, 1))
    low, high = stats.newcombe(rates[:1], first, rates[1:], second)
    assert (low[0], high[0]) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_clustered_intervals_of_a_difference_cover_at_their_rate() -> None:
    rng = np.random.default_rng(2)
    n, means, ends = np.full(60, 12), [], []
    for a, b in ((6, 4), (2, 3)):  # prompts of one set fire at 0.6 on average, of the other at 0.4
        hits = rng.binomial(12, rng.beta(a, b, size=(60, 2000)))
        means.append(hits.sum(0) / n.sum())
        ends.append(stats.wilson(means[-1], stats.effective_n(hits, n)))
    low, high = stats.newcombe(means[0], ends[0], means[1], ends[1])
    assert 0.93 < ((low <= 0.2) & (high >= 0.2)).mean() < 0.97
