"""Headlines need an effect, not just a small q; the best layer is chosen on held-out prompts."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from saescope.analysis.contrast import Contrast, ContrastSettings, contrast
from saescope.analysis.headline import Headline
from saescope.analysis.layers import layers
from saescope.analysis.sentences import contrast_sentence, layers_sentence
from saescope.analysis.separation import best_layer, gain_of_choice, separation
from saescope.errors import ArgumentError
from saescope.sources.splits import split_prompts
from saescope.store.runs import Run
from saescope.surfaces.cli import run as cli
from stored import write_run

PROMPTS, LENGTH = 40, 21
TOTAL = 2 * PROMPTS * LENGTH
OF_A = np.arange(TOTAL) < TOTAL // 2
SETTINGS = ContrastSettings(shuffles=0)
Bools = npt.NDArray[np.bool_]


def two_sets(folder: Path, fires: Mapping[int, Bools]) -> Run:
    lengths = {"a": [LENGTH] * PROMPTS, "b": [LENGTH] * PROMPTS}
    return write_run(folder / "run", lengths, dict(fires))


def every_nth(share_in_a: float, share_in_b: float) -> Bools:
    """Fire on these shares of the twenty scored positions of each prompt, the first ones."""
    place = np.arange(TOTAL) % LENGTH
    return np.where(
        OF_A, (place > 0) & (place <= 20 * share_in_a), (place > 0) & (place <= 20 * share_in_b)
    )


def weak_and_strong(folder: Path) -> Contrast:
    """In a the best feature fires on 25 % against 5 %, in b on 90 % against 10 %."""
    return contrast(
        two_sets(folder, {3: np.stack([every_nth(0.25, 0.05), every_nth(0.1, 0.9)], axis=1)}),
        SETTINGS,
    )


def test_significant_but_weak_is_no_headline(tmp_path: Path) -> None:
    result = weak_and_strong(tmp_path)
    of_a, of_b = result.layers[3].sets["a"], result.layers[3].sets["b"]
    assert of_a.features[0].confirmed
    assert of_a.features[0].holdout_q < 1e-6
    assert of_a.headline is None
    assert of_b.headline == of_b.features[0]
    assert contrast_sentence(result) == (
        "1 of 2 sets has a feature in layer 3 that is confirmed on held-out prompts at ≥ 50 % and "
        "≥ 5 times the rate elsewhere; without one: a (best 3/0: 25 / 5 %)."
    )
    assert result.to_dict()["layers"]["3"]["sets"]["a"]["headline"] is None
    assert result.to_dict()["settings"]["headline_rate"] == 0.5


def test_minimum_can_be_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weak_and_strong(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli(["contrast", "run", "--headline-rate", "0.2"]) == 0
    assert "Both sets have a feature in layer 3" in capsys.readouterr().out
    assert cli(["layers", "run", "--headline-ratio", "10"]) == 0
    assert "No set has a feature there" in " ".join(capsys.readouterr().out.split())
    assert cli(["contrast", "run", "--headline-ratio", "0.5"]) == 2
    with pytest.raises(ArgumentError, match="headline_rate must lie between 0 and 1"):
        ContrastSettings(headline=Headline(headline_rate=2.0)).check()


@pytest.mark.parametrize(
    ("rate", "other", "allowed"),
    [
        (0.5, 0.1, True),
        (0.499, 0.0, False),
        (0.5, 0.101, False),
        (0.9, 0.18, True),
        (0.6, 0.0, True),
    ],
)
def test_both_limits_are_included(rate: float, other: float, allowed: bool) -> None:
    assert Headline().allows(rate, other) == allowed


def test_feature_of_the_headline_is_in_the_table(tmp_path: Path) -> None:
    """The largest margin (70 % - 15 %) is only 4.7 times the rate elsewhere; the next one is 11."""
    fires = np.stack([every_nth(0.7, 0.15), every_nth(0.55, 0.05), every_nth(0, 0.9)], axis=1)
    result = contrast(two_sets(tmp_path, {3: fires}), ContrastSettings(n_top=1, shuffles=0))
    of_a = result.layers[3].sets["a"]
    assert [str(feature.feature) for feature in of_a.features] == ["3/0"]
    assert of_a.headline is not None
    assert str(of_a.headline.feature) == "3/1"
    assert of_a.headline in of_a.shown(1)


def by_part(run_of: Path, discovery: tuple[float, float], held_out: tuple[float, float]) -> Run:
    """Feature 0 is of a, feature 1 of b; layers 0 and 1 fire on these shares of each part."""
    plain = two_sets(run_of / "plain", {0: np.zeros((TOTAL, 1), bool)})
    is_discovery = np.array([part == "discovery" for part in split_prompts(plain.prompts)])
    of_token = is_discovery[np.arange(TOTAL) // LENGTH]
    fires = {}
    for layer in (0, 1):
        share = np.where(of_token, discovery[layer], held_out[layer])
        on = (np.arange(TOTAL) % LENGTH <= 20 * share) & (np.arange(TOTAL) % LENGTH > 0)
        fires[layer] = np.stack([on & OF_A, on & ~OF_A], axis=1)
    return two_sets(run_of, fires)


@pytest.mark.parametrize(
    ("discovery", "held_out", "best"),
    [
        ((1.0, 0.7), (0.5, 0.7), 1),  # discovery alone would choose layer 0
        ((0.6, 0.8), (0.7, 0.7), 1),  # equal: the better one on discovery prompts
        ((0.8, 0.8), (0.7, 0.7), 0),  # equal in both: the lower one
    ],
)
def test_held_out_separation_chooses_the_layer(
    tmp_path: Path, discovery: tuple[float, float], held_out: tuple[float, float], best: int
) -> None:
    run = by_part(tmp_path, discovery, held_out)
    result = layers(run)
    assert result.best == best == best_layer(contrast(run, SETTINGS))
    for layer in (0, 1):
        assert result.layers[layer].separation == pytest.approx(held_out[layer])
    assert f"separate best in layer {best}: separation {held_out[best]:.2f}" in (
        layers_sentence(result)
    )
    assert result.to_dict()["gain_of_choice"] == pytest.approx(0, abs=1e-9)


def test_gain_of_choice_is_the_expected_lead_of_the_largest() -> None:
    rng = np.random.default_rng(0)
    # The larger of two standard normals is 1 / √π on average.
    noise = {layer: rng.normal(size=20_000) for layer in (3, 7)}
    assert gain_of_choice(noise) == pytest.approx(np.pi**-0.5, abs=0.02)
    assert gain_of_choice({3: noise[3]}) == pytest.approx(0, abs=1e-12)
    assert gain_of_choice({3: noise[3], 7: noise[7] + 100}) == pytest.approx(0, abs=1e-9)


def test_set_without_a_feature_counts_as_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only_b = {0: every_nth(0, 0.8)[:, None], 1: np.ones((TOTAL, 1), bool)}
    run = two_sets(tmp_path, only_b)
    result = layers(run)
    assert result.layers[0].separation == pytest.approx(0.4)
    low, high = result.layers[0].ci
    assert low <= 0.4 <= high
    assert separation(contrast(run, SETTINGS).layers[0].sets) == pytest.approx(0.4)
    assert "a (no feature fires)" in layers_sentence(result)
    monkeypatch.chdir(tmp_path)
    assert cli(["layers", "run"]) == 0
    assert "none fires" in capsys.readouterr().out
    assert cli(["report", "run"]) == 0
    assert "No feature fires." in Path("run.html").read_text(encoding="utf-8")
