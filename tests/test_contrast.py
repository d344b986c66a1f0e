"""Contrast counts right, finds what was planted, and finds nothing where nothing is."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse import csr_array

from saescope.analysis.contrast import ContrastSettings, contrast
from saescope.analysis.counts import FiringCounts, count_fires
from saescope.analysis.search import power_warnings, search
from saescope.errors import PromptError
from stored import write_run

LENGTH = 8


def random_fires(
    rng: np.random.Generator, sets: int, prompts: int, d_sae: int
) -> npt.NDArray[np.bool_]:
    """Features that each prompt fires at its own rate, alike in every set."""
    base = rng.beta(0.5, 3, size=d_sae)
    by_prompt = rng.beta(2 * base + 1e-3, 2 * (1 - base) + 1e-3, size=(sets * prompts, d_sae))
    return rng.random((sets * prompts * LENGTH, d_sae)) < np.repeat(by_prompt, LENGTH, axis=0)


def counted(fires: npt.NDArray[np.bool_], sets: int) -> FiringCounts:
    """Counts of these firings without position 0, as `count_fires` returns them of a run."""
    hits = fires.reshape(-1, LENGTH, fires.shape[1])[:, 1:].sum(1)
    n_prompts, d_sae = hits.shape
    labels = np.repeat(np.arange(sets), n_prompts // sets)
    n = np.full(n_prompts, LENGTH - 1)
    return FiringCounts(np.arange(d_sae), csr_array(hits.astype(np.int32)), n, labels, sets)


def test_counts_of_a_run_are_those_of_its_firings(tmp_path: Path) -> None:
    fires = random_fires(np.random.default_rng(5), sets=3, prompts=24, d_sae=50)
    run = write_run(tmp_path / "run", {name: [LENGTH] * 24 for name in "abc"}, {0: fires})
    of_run = count_fires(run, run.features(0), run.token_pos > 0)
    expected = counted(fires, sets=3).of_features(of_run.features)
    assert (of_run.hits.toarray() == expected.hits.toarray()).all()
    assert (of_run.n == expected.n).all()
    assert (of_run.labels == expected.labels).all()


def test_rates_are_counted_by_hand(tmp_path: Path) -> None:
    fires = np.zeros((24, 3), bool)  # two sets × three prompts × four tokens
    fires[[1, 2, 3, 5, 6, 9], 0] = True
    fires[[13, 17], 0] = True
    fires[[0, 4, 8, 12], 1] = True  # position 0 only: never counted
    run = write_run(tmp_path / "run", {"a": [4] * 3, "b": [4] * 3}, {5: fires})
    result = contrast(run, ContrastSettings(shuffles=0))
    set_a = result.layers[5].sets["a"]
    [feature] = set_a.features
    assert (set_a.tokens, set_a.prompts) == (9, 3)
    assert str(feature.feature) == "5/0"
    assert feature.rate == pytest.approx(6 / 9)
    assert feature.other_rate == pytest.approx(2 / 9)
    assert feature.score == pytest.approx(4 / 9)
    assert (feature.prompt_rate, feature.prompt_other_rate) == (1.0, pytest.approx(2 / 3))
    assert feature.mean_act == pytest.approx(1.0)
    assert feature.ci[0] < 1.0 <= feature.ci[1]
    assert feature.rate_ci[0] < 6 / 9 < feature.rate_ci[1]
    assert (
        -1 <= feature.holdout_score_ci[0] < feature.holdout_score < feature.holdout_score_ci[1] <= 1
    )
    assert result.rows()[0]["holdout_score_ci"] == list(feature.holdout_score_ci)


def test_other_set_is_the_hardest_one(tmp_path: Path) -> None:
    fires = np.zeros((36, 1), bool)
    for n, count in enumerate((9, 3, 6)):
        fires[[12 * n + at for at in (1, 2, 3, 5, 6, 7, 9, 10, 11)][:count], 0] = True
    run = write_run(tmp_path / "run", {"a": [4] * 3, "b": [4] * 3, "c": [4] * 3}, {0: fires})
    sets = contrast(run, ContrastSettings(shuffles=0)).layers[0].sets
    assert (sets["a"].features[0].other_set, sets["a"].features[0].other_rate) == (
        "c",
        pytest.approx(6 / 9),
    )
    assert (sets["b"].features[0].other_set, sets["c"].features[0].other_set) == ("a", "a")
    assert sets["b"].features[0].score == pytest.approx(3 / 9 - 1)


@pytest.mark.slow
def test_planted_features_are_confirmed_within_the_stated_rate() -> None:
    planted, false_shares, recall = 12, [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        fires = random_fires(rng, sets=3, prompts=24, d_sae=400)
        first_set = np.arange(len(fires)) < 24 * LENGTH
        fires[:, :planted] = (
            rng.random((len(fires), planted)) < np.where(first_set, 0.6, 0.08)[:, None]
        )
        counts = counted(fires, sets=3)
        is_discovery = np.tile(np.arange(24) < 14, 3)
        discovery, holdout = counts.of_prompts(is_discovery), counts.of_prompts(~is_discovery)
        confirmed = search(discovery, holdout, alpha=0.05).confirmed
        n_confirmed, n_true = confirmed.sum(), confirmed[0, :planted].sum()
        false_shares.append((n_confirmed - n_true) / max(1, n_confirmed))
        recall.append(n_true / planted)
    assert np.mean(false_shares) <= 0.05
    assert np.mean(recall) > 0.9


@pytest.mark.slow
def test_a_set_split_at_random_confirms_nothing(tmp_path: Path) -> None:
    confirmed = 0
    for seed in range(20):
        fires = random_fires(np.random.default_rng(seed), sets=2, prompts=30, d_sae=1000)
        run = write_run(
            tmp_path / str(seed), {"left": [LENGTH] * 30, "right": [LENGTH] * 30}, {0: fires}
        )
        confirmed += sum(
            c.confirmed for c in contrast(run, ContrastSettings(shuffles=0)).layers[0].sets.values()
        )
    assert confirmed == 0


def test_article_sized_sets_can_be_confirmed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fires = random_fires(rng, sets=4, prompts=15, d_sae=2000)
    for n in range(4):
        rows = slice(15 * LENGTH * n, 15 * LENGTH * (n + 1))
        fires[:, n] = rng.random(len(fires)) < 0.02
        fires[rows, n] = rng.random(15 * LENGTH) < 0.95
    run = write_run(
        tmp_path / "run", {name: [LENGTH] * 15 for name in "abcd"}, {17: fires}, paired=True
    )
    result = contrast(run, ContrastSettings(shuffles=5))
    for n, set_result in enumerate(result.layers[17].sets.values()):
        best = set_result.features[0]
        assert (best.feature.id, best.confirmed) == (n, True)
        assert best.q <= 0.05
        assert best.holdout_score > 0.8
    assert result.layers[17].shuffled_confirmed == 0
    assert result.discovery == dict.fromkeys("abcd", 9)
    assert result.warnings == []


def test_too_few_prompts_are_warned_of(tmp_path: Path) -> None:
    fires = np.ones((40, 1), bool)
    run = write_run(tmp_path / "run", {"a": [4] * 5, "b": [4] * 5}, {0: fires})
    [warning] = contrast(run, ContrastSettings(shuffles=0)).warnings
    assert "too few held-out prompts for a feature of these sets to be confirmed" in warning


def test_one_set_alone_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"alone": [4] * 5}, {0: np.ones((20, 1), bool)})
    with pytest.raises(PromptError, match="alone"):
        contrast(run)


def test_set_of_one_token_prompts_is_refused(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", {"long": [4] * 5, "short": [1] * 5}, {0: np.ones((25, 1), bool)}
    )
    with pytest.raises(PromptError, match="'short' has no scored position"):
        contrast(run)


def test_same_settings_give_the_same_answer(tmp_path: Path) -> None:
    fires = random_fires(np.random.default_rng(3), sets=2, prompts=12, d_sae=50)
    run = write_run(tmp_path / "run", {"a": [LENGTH] * 12, "b": [LENGTH] * 12}, {0: fires})
    assert (
        contrast(run, ContrastSettings(seed=7)).to_dict()
        == contrast(run, ContrastSettings(seed=7)).to_dict()
    )


@pytest.mark.parametrize(
    ("holdout", "alpha", "named"),
    [
        ({"a": 2, "b": 2, "c": 100}, 0.05, "a 2, b 2; with 3 or more in every set, about 7"),
        ({"a": 3, "b": 3}, 0.01, "a 3, b 3; with 5 or more in every set, about 12"),
        ({"a": 3, "b": 0}, 0.05, "a 3, b 0"),
    ],
)
def test_sets_that_cannot_be_confirmed_are_named(
    holdout: dict[str, int], alpha: float, named: str
) -> None:
    [warning] = power_warnings(holdout, alpha)
    assert f"at alpha {alpha:g}: {named}" in warning


def test_advised_number_of_prompts_is_enough() -> None:
    assert power_warnings({"a": 3, "b": 3}, 0.05) == []
    assert power_warnings({"a": 5, "b": 5}, 0.01) == []
