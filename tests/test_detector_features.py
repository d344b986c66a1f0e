"""detect's tables explain the detector: its features are shown, whatever rule they passed."""

from pathlib import Path

import numpy as np
import pytest

from saescope.analysis.detect import detect
from saescope.analysis.detection import Detection, DetectSettings
from saescope.analysis.headline import Headline
from saescope.analysis.sentences import detection_sentence
from saescope.surfaces.cli import run as cli
from test_detect import planned

SETS = {"yes": 40, "no": 40}


def complementary(tmp_path: Path) -> Detection:
    """Two features that fire on half of the target each: no single one passes 80 %."""
    fires = np.zeros((80, 4), bool)
    fires[:40:2, 0] = fires[1:40:2, 1] = True
    fires[40:44, 1] = True
    return detect(planned(tmp_path / "run", SETS, fires), "yes")


def test_features_of_the_detector_have_their_firings(tmp_path: Path) -> None:
    result = complementary(tmp_path)
    assert result.features == []
    assert {str(feature.feature) for feature in result.detector} == {"3/0", "3/1"}
    assert [feature.feature for feature in result.detector] == result.classifier.features
    assert not any(feature.passes or feature.holdout_passes for feature in result.detector)
    fired = dict.fromkeys(result.classifier.features, 0)
    for prompt in result.firings:
        for feature in prompt.fires:
            fired[feature] += 1
    assert {str(feature): n for feature, n in fired.items()} == {"3/0": 20, "3/1": 24}
    # The firings are those by which the detector's recall was measured.
    held_out = [p for p in result.firings if p.set == "yes" and p.split == "holdout"]
    recall = np.mean([bool(p.fires) for p in held_out])
    assert result.classifier.holdout.recall == recall == 1
    assert len(result.rows()) == 2
    assert result.to_dict()["features"] == []
    assert [row["passes"] for row in result.to_dict()["detector"]] == [False, False]


def test_sentence_does_not_deny_what_the_detector_does(tmp_path: Path) -> None:
    sentence = detection_sentence(complementary(tmp_path))
    assert sentence.startswith("No feature by itself detects yes on discovery prompts (≥ 80 %")
    assert "any of 3/0, 3/1 detects it with F1" in sentence


def test_terminal_shows_the_detector_where_nothing_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    complementary(tmp_path)
    assert cli(["detect", "run", "--target", "yes"]) == 0
    shown = capsys.readouterr().out
    assert "other features that the detector uses: below these thresholds" in shown
    marks = next(line for line in shown.splitlines() if "3/0" in line and "|" in line)
    assert "14/24 | 6/16" in " ".join(marks.split())


def test_headline_needs_an_effect_and_says_which(tmp_path: Path) -> None:
    fires = np.zeros((80, 2), bool)
    fires[:38, 0] = True
    fires[40::3, 0] = True  # on a third elsewhere: under max_other, not five times as often
    run = planned(tmp_path / "run", SETS, fires)
    loose = DetectSettings(max_other=0.5)
    [feature] = detect(run, "yes", loose).features
    assert feature.holdout_passes
    assert "none on held-out prompts too, at ≥ 50 % and ≥ 5 times" in detection_sentence(
        detect(run, "yes", loose)
    )
    twice = DetectSettings(max_other=0.5, headline=Headline(headline_ratio=2.0))
    assert "and on held-out prompts too, at ≥ 50 % and ≥ 2 times" in detection_sentence(
        detect(run, "yes", twice)
    )


def test_detector_that_is_no_better_than_always_yes_says_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    run = planned(tmp_path / "run", SETS, rng.random((80, 30)) < 0.5)
    result = detect(run, "yes", DetectSettings(max_k=10))
    holdout = result.classifier.holdout
    assert holdout.f1 is not None
    assert holdout.always_f1 is not None
    says = "no better than calling every prompt yes" in detection_sentence(result)
    assert says == (holdout.f1 <= holdout.always_f1)
