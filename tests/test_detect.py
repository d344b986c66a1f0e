"""Detection: thresholds by hand, the null control, the OR-rule, transfer, Qwen-Scope's measures."""

import json
import tomllib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from saescope.analysis.classify import fit_or_rule, score
from saescope.analysis.detect import detect
from saescope.analysis.detection import Detection, DetectSettings
from saescope.errors import PromptError
from saescope.store.runs import Run
from saescope.surfaces.cli import run as cli
from stored import write_run

LENGTH = 5


def planned(
    out: Path, sets: dict[str, int], prompt_fires: npt.NDArray[np.bool_], **run_options: object
) -> Run:
    """A feature fires on one scored token of each prompt (row) where `prompt_fires` says so."""
    fires = np.zeros((len(prompt_fires) * LENGTH, prompt_fires.shape[1]), bool)
    fires[2::LENGTH] = prompt_fires
    return write_run(
        out, {name: [LENGTH] * n for name, n in sets.items()}, {3: fires}, **run_options
    )


def test_detection_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fires = np.zeros((80, 4), bool)
    fires[:40, 0] = True  # always on the target
    fires[:40, 1] = rng.random(40) < 0.5  # too rare
    fires[:, 2] = True  # everywhere
    run = planned(tmp_path / "run", {"yes": 40, "no": 40}, fires)
    detection = detect(run, "yes")
    [feature] = detection.features
    assert str(feature.feature) == "3/0"
    assert (feature.prompt_rate, feature.prompt_other_rate, feature.holdout_passes) == (
        1.0,
        0.0,
        True,
    )
    assert feature.confirmed
    # Activation 1 on one scored token of four.
    assert feature.monolinguality == pytest.approx(1 / (LENGTH - 1))
    assert detection.classifier.features == [feature.feature]
    holdout = detection.classifier.holdout
    assert holdout.f1 == 1
    assert (holdout.positives, holdout.negatives) == (16, 16)
    assert [len(p.fires) for p in detection.firings] == [1] * 40 + [0] * 40
    assert detection.against == ["no"]


def test_position_0_and_sinks_do_not_detect(tmp_path: Path) -> None:
    fires = np.zeros((200, 2), bool)
    fires[:100:LENGTH, 0] = True  # position 0 of the target's prompts
    fires[1:100:LENGTH, 1] = True  # a sink of the target's prompts
    norms = np.ones(200, np.float32)
    norms[1:100:LENGTH] = 500
    run = write_run(
        tmp_path / "run", {"yes": [LENGTH] * 20, "no": [LENGTH] * 20}, {1: fires}, norms=norms
    )
    detection = detect(run, "yes")
    assert detection.features == []
    assert detection.masked[1] == (40, 20)


def test_chance_is_what_shuffled_labels_pass(tmp_path: Path) -> None:
    """15 a side at random: the 80/20 rule passes what the binomial says it does."""
    rng = np.random.default_rng(1)
    fires = rng.random((30, 4000)) < 0.5
    run = planned(tmp_path / "run", {"left": 15, "right": 15}, fires)
    detection = detect(run, "left", DetectSettings(shuffles=200))
    # Nine discovery prompts a side: at least 8 of 9, at most 1 of 9, each with probability 10/512.
    assert detection.by_chance == pytest.approx(4000 * (10 / 512) ** 2, rel=0.25)
    assert abs(len(detection.features) - detection.by_chance) < 5
    assert not any(f.confirmed for f in detection.features)
    assert "few prompts" in detection.warnings[0]


def test_or_rule_takes_features_that_complete_each_other() -> None:
    positive = np.arange(40) < 20
    fires = np.zeros((40, 3), bool)
    fires[:12, 0] = fires[12:20, 1] = True
    fires[:, 2] = True
    rule = fit_or_rule(fires, positive, np.array([10, 20, 30]), 7, max_k=3)
    assert [str(f) for f in rule.features] == ["7/10", "7/20"]
    assert np.array_equal(rule(fires), positive)


def test_or_rule_takes_the_stronger_of_equals() -> None:
    positive = np.arange(10) < 5
    fires = np.repeat(positive[:, None], 3, axis=1)
    rule = fit_or_rule(
        fires, positive, np.array([10, 20, 30]), 7, 3, strength=np.array([1.0, 5.0, 2.0])
    )
    assert [str(f) for f in rule.features] == ["7/20"]


@pytest.mark.slow
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_scores_equal_sklearn(pairs: list[tuple[bool, bool]]) -> None:
    detected, positive = (np.array(column) for column in zip(*pairs, strict=True))
    scores = score(detected, positive, np.arange(len(pairs)))
    if positive.any():
        assert scores.f1 == pytest.approx(f1_score(positive, detected, zero_division=0))
        assert scores.recall == pytest.approx(recall_score(positive, detected))
    if detected.any():
        assert scores.precision == pytest.approx(
            precision_score(positive, detected, zero_division=0)
        )
    else:
        assert scores.precision is None


@pytest.mark.slow
def test_f1_interval_covers() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(80) < 40
    truth = 2 * 0.8 * 40 / (0.8 * 40 + 0.1 * 40 + 40)
    covered = []
    for seed in range(200):
        detected = rng.random(80) < np.where(positive, 0.8, 0.1)
        interval = score(detected, positive, np.arange(80), seed).f1_ci
        assert interval is not None
        covered.append(interval[0] <= truth <= interval[1])
    assert 0.88 <= np.mean(covered) <= 0.99


@pytest.fixture
def behaviours(tmp_path: Path) -> Run:
    """A behaviour in two languages: feature 0 is the behaviour, features 1 and 2 the languages."""
    rng = np.random.default_rng(0)
    names = ["declined_en", "answered_en", "declined_ja", "answered_ja"]
    fires = np.zeros((160, 30), bool)
    fires[:40, 0] = fires[80:120, 0] = True
    fires[:80, 1] = fires[80:, 2] = True
    fires[:, 3:] = rng.random((160, 27)) < 0.3
    resids = rng.normal(size=(160, 6)).astype(np.float32)
    resids[:, 0] += 5 * fires[:, 0]
    return planned(tmp_path / "run", dict.fromkeys(names, 40), fires, resids=resids, paired=True)


def test_transfer_goes_to_sets_named_alike(behaviours: Run) -> None:
    detection = detect(behaviours, "declined_en", against=["answered_en"])
    assert [str(f) for f in detection.classifier.features] == ["3/0"]
    assert list(detection.classifier.transfer) == ["declined_ja"]
    transferred, others = detection.classifier.transfer["declined_ja"]
    baselines = detection.classifier.baselines
    assert (transferred.f1, transferred.positives, transferred.negatives) == (1.0, 16, 16)
    assert set(others) == set(baselines) == {"probe", "difference_of_means", "words"}
    assert baselines["probe"].f1 > 0.9
    assert baselines["difference_of_means"].f1 > 0.9


def test_language_is_no_behaviour(behaviours: Run) -> None:
    """Against all other sets the language's feature does not pass, for answered_en has it too."""
    assert [str(f.feature) for f in detect(behaviours, "answered_en").features] == []
    assert detect(behaviours, "declined_en", transfer={}).classifier.transfer == {}


def test_measures_of_sets_by_hand(tmp_path: Path) -> None:
    fires = np.zeros((20, 4), bool)
    fires[4::LENGTH, 0] = True  # the last token of all four prompts
    fires[[4, 9], 1] = True  # of both of set a's
    fires[14, 2] = True  # of one of set b's
    fires[3, 3] = True  # not a last token
    run = write_run(tmp_path / "run", {"a": [LENGTH] * 2, "b": [LENGTH] * 2}, {0: fires})
    sets = detect(run, "a", DetectSettings(shuffles=0)).sets
    assert (sets["a"].features, sets["a"].redundancy, sets["a"].overlap) == (2, 2.0, {"b": 0.5})
    assert (sets["b"].features, sets["b"].redundancy, sets["b"].overlap) == (2, 1.5, {"a": 0.5})


def test_features_on_the_same_tokens_are_one_group(tmp_path: Path) -> None:
    fires = np.zeros((40 * LENGTH, 3), bool)
    in_target = np.arange(40 * LENGTH) < 20 * LENGTH
    fires[in_target, 0] = True
    fires[in_target & (np.arange(len(in_target)) % LENGTH < 4), 1] = True
    fires[in_target & (np.arange(len(in_target)) % LENGTH == 4), 2] = True
    run = write_run(tmp_path / "run", {"yes": [LENGTH] * 20, "no": [LENGTH] * 20}, {0: fires})
    groups = {f.feature.id: f.group for f in detect(run, "yes").features}
    assert groups[0] == groups[1] != groups[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "maybe"}, "no set 'maybe'"),
        ({"target": "yes", "against": ["yes"]}, "no other set to compare"),
        ({"target": "yes", "transfer": {"yes": ["nope"]}}, "no set 'nope'"),
        (
            {"target": "yes", "settings": DetectSettings(min_rate=0.2)},
            "max_other must be below min_rate, got 0.2 and",
        ),
        (
            {"target": "yes", "settings": DetectSettings(min_rate=1.2)},
            "min_rate must lie between 0 and 1, got 1.2",
        ),
    ],
)
def test_invalid_arguments_are_refused(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    run = planned(tmp_path / "run", {"yes": 5, "no": 5}, np.ones((10, 1), bool))
    with pytest.raises(PromptError, match=message):
        detect(run, **arguments)


@pytest.mark.slow
def test_planted_detectors_are_found_and_others_are_not(tmp_path: Path) -> None:
    """In 60 simulated data sets, at most 5 % of features confirmed on held-out prompts are null."""
    shares = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        fires = rng.random((60, 300)) < rng.beta(1, 2, size=300)
        fires[:, :5] = rng.random((60, 5)) < np.where(np.arange(60) < 30, 0.97, 0.05)[:, None]
        detection = detect(
            planned(tmp_path / str(seed), {"yes": 30, "no": 30}, fires),
            "yes",
            DetectSettings(shuffles=0),
        )
        confirmed = [f.feature.id for f in detection.features if f.confirmed]
        shares.append(sum(f >= 5 for f in confirmed) / max(1, len(confirmed)))
        assert sum(f < 5 for f in confirmed) >= 3
    assert np.mean(shares) <= 0.05


@pytest.mark.slow
def test_detect_command_on_the_embedded_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["detect", "languages", "--target", "japanese", "--layers", "2,4"]
    assert cli([*arguments, "--transfer", "chinese:code+hindi", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["features"]
    assert all(
        f["prompt_rate"] >= 0.8 and f["prompt_other_rate"] <= 0.2 for f in result["features"]
    )
    assert result["by_chance"]["mean"] < 0.1
    classifier = result["classifier"]
    assert classifier["f1"] > 0.85 > classifier["always_f1"]
    assert classifier["baselines"]["probe"]["f1"] > 0.9
    assert classifier["baselines"]["words"]["f1"] > 0.7  # much of a language is in its words
    assert classifier["transfer"]["chinese"]["negatives"] == 28
    edits = tomllib.loads(Path(result["edits"]).read_text(encoding="utf-8"))
    assert (edits["model"], edits["sae"], edits["d_sae"]) == (
        "saescope-tiny",
        "saescope-tiny-sae",
        512,
    )
    assert [edit["feature"] for edit in edits["edit"]] == classifier["features"]
    assert edits["edit"][0]["op"] == "scale"
    assert cli(["detect", result["run"], "--target", "japanese"]) == 0
    assert "shuffled labels" in capsys.readouterr().out.replace("\n", " ")


def test_result_is_a_table(behaviours: Run) -> None:
    detection: Detection = detect(behaviours, "declined_en", against=["answered_en"])
    assert detection.to_arrow().num_rows == len(detection.features)
    assert "3/0" in detection._repr_html_()


@pytest.mark.slow
def test_declining_is_detected_after_the_request_and_controls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the organism, English sets alone find the decision, and not the words of the topic."""
    monkeypatch.chdir(tmp_path)
    pair = ["--model", "saescope-tiny-chat", "--sae", "saescope-tiny-chat-sae", "--layers", "2"]
    sides = ["--target", "declined_en", "--against", "answered_en"]
    assert cli(["detect", "requests", *pair, *sides, "--last", "10", "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert cli(["detect", after["run"], *sides, "--json"]) == 0
    anywhere = json.loads(capsys.readouterr().out)
    monolinguality = {f["feature"]: f["monolinguality"] for f in after["features"]}
    # Steering this feature takes declining out.
    assert max(monolinguality, key=lambda feature: monolinguality[feature]) == "2/412"
    # Elsewhere it fires on other requests too.
    assert "2/412" not in {f["feature"] for f in anywhere["features"]}
    assert set(after["classifier"]["transfer"]) == {"declined_ja", "declined_zh"}
