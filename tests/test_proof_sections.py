"""The page of the proof: its sentences follow from the figures, whichever way they fall."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import saescope as ss
from benchmarks.shapes import SHAPES
from proof.arms import find_arm
from proof.commands import typed
from proof.experiments import forcing, languages, large, layers, removal
from proof.folder import DataFolder
from proof.relevance import harmonic_mean, relevance, score_ci
from proof.wording import listed, nats, number, paragraph, share_ci


def test_figures_are_written_in_one_way() -> None:
    assert share_ci(0.8333, (0.71, 0.912)) == "83 % (71-91)"
    assert [nats(kl) for kl in (None, 0.0, 0.02345, 1.62, 0.00002)] == [
        "–",
        "0",
        "0.023",
        "1.6",
        "2e-05",
    ]
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert [number(0), number(3), number(48)] == ["no", "three", "48"]
    assert max(map(len, paragraph("some words " * 40).splitlines())) <= 100


def test_commands_are_shown_as_typed_and_fit_the_page() -> None:
    words = ("evaluate", "--edit", "15/7 scale -2", "--model", "models/gemma3", "--draws", "3")
    assert typed(*words) == (
        'saescope evaluate --edit "15/7 scale -2" --model models/gemma3 --draws 3'
    )
    lines = typed("evaluate", *(["--neutral", "runs/some-long-name.jsonl"] * 6)).splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 100


def _languages(japanese: float, as_good: bool) -> dict[str, Any]:
    """Two languages at two layers; English has no feature."""
    sets = {
        name: {
            "feature": feature,
            "holdout_rate": rate,
            "holdout_other_rate": 0.05,
            "holdout_score": rate - 0.05,
            "holdout_score_ci": [rate - 0.1, rate],
        }
        for name, feature, rate in (("ja", "15/7", 0.8), ("en", "15/9", 0.3))
    }
    low = {"separation": 0.1, "ci": [0.05, 0.15], "as_good_as_best": as_good, "sets": sets}
    high = {"separation": 0.5, "ci": [0.45, 0.55], "as_good_as_best": True, "sets": sets}
    rates = {"ja": {"ja": japanese, "en": 0.02}, "en": {"ja": 0.1, "en": 0.2}}
    own = {name: {"rate": rates[name][name], "ci": [0.0, 1.0]} for name in rates}
    kind = {"rates": rates, "own": own, "prompts": 10}
    return {
        "commands": ["saescope contrast"],
        "best": 15,
        "layers": {"2": low, "15": high},
        "features": {"ja": "15/7", "en": "15/9"},
        "help": {"rates": rates, "prompts": 20, "held_out": 8},
        "kinds": dict.fromkeys(languages.KINDS, kind),
        "shuffled": {"confirmed": 0, "shuffles": 20},
    }


def test_languages_say_who_has_a_feature_and_where_it_no_longer_holds() -> None:
    text = " ".join(languages.section(_languages(0.9, as_good=False)).split())
    assert "Japanese has one; English has none." in text
    assert "On a game's story that holds of 1 of 1." in text
    assert "No other layer is as good." in text
    text = " ".join(languages.section(_languages(0.2, as_good=True)).split())
    assert "On a game's story that holds of 0 of 1, not of Japanese." in text
    assert "Layer 2 cannot be told from it." in text


def _evaluation(rate: float, ci: list[float]) -> dict[str, Any]:
    common = {"ppl_ratio": 1.0, "spread": None, "draws": 1, "match": None, "strength": None}
    none = {"name": "none", "behaviour_rate": 1.0, "ci": [0.9, 1.0], "kl_mean": 0.0, **common}
    edits = {"name": "edits", "behaviour_rate": rate, "ci": ci, "kl_mean": 0.02, **common}
    arms = [none, {**edits, "strength": 2.0}, {**edits, "strength": 1.0}]
    return {"arms": arms, "chosen": {"strength": 1.0}, "verdict": "It does."}


def test_the_chosen_strength_stands_for_the_edits() -> None:
    found = find_arm(_evaluation(0.3, [0.2, 0.4]), "edits")
    assert found is not None
    assert found["strength"] == 1.0
    assert find_arm(_evaluation(0.3, [0.2, 0.4]), "minus") is None


def _layers(detector: tuple[float, list[float]], zero: float) -> dict[str, Any]:
    def candidate(feature: str, margin: float, rate: float) -> dict[str, Any]:
        figures = {"margin": margin, "margin_ci": [margin - 0.1, margin + 0.1], "kl_mean": 0.02}
        rates = {"output_score": rate, "strength": -1.0, "behaviour_rate": rate}
        return {"feature": feature, **figures, **rates, "tokens": ["の", "`"]}

    first, second = candidate("15/1", 0.6, 0.9), candidate("15/2", 0.4, 0.2)
    judged = {"before": 1.0, "after": 0.25, "ci": [0.1, 0.5], "effect": 0.75}
    roles = {"detector": first, "actor": second}
    layer = {"candidates": [second, first], **roles, "judged": judged, "prompts": 12}
    edited = {"command": "saescope evaluate"}
    return {
        "layers": {"2": {}, "15": layer},
        "best": 15,
        "commands": ["saescope evaluate"],
        "evaluations": {
            "actor": _evaluation(0.3, [0.2, 0.4]),
            "detector": _evaluation(*detector),
        },
        "about": {
            "feature": "15/2",
            "mean": {"kl_mean": 0.02, **edited},
            "zero": {"kl_mean": zero, **edited},
        },
    }


@pytest.mark.parametrize(
    ("detector", "said"),
    [
        ((0.95, [0.8, 1.0]), "is not the one that controls it"),
        ((0.35, [0.2, 0.5]), "both features act"),
        ((0.9, [0.35, 1.0]), "cannot be said from these prompts"),
    ],
)
def test_detection_and_control_are_compared_by_their_intervals(
    detector: tuple[float, list[float]], said: str
) -> None:
    text = " ".join(layers.section(_layers(detector, zero=1.6)).split())
    assert said in text
    assert "That is 80 times as much" in text
    assert "No feature detects Japanese at layer 2." in text
    assert "makes little difference" in layers.section(_layers(detector, zero=0.01))


def _task(feature: list[float], means: list[float], match: str | None) -> dict[str, Any]:
    def way(score: list[float], arm: str, match: str | None = None) -> dict[str, Any]:
        figures = dict.fromkeys(("success", "relevance", "score"), score)
        return {"arm": arm, **figures, "kl_mean": 0.1, "strength": 1.0, "match": match}

    methods = {
        "none": way([0.0, 0.0, 0.0], "none"),
        "edits": way(feature, "edits"),
        "difference of means": way(means, "difference of means, add", match),
    }
    task = {"direction": "force", "language": "ja", "edit": "15/7 add 20"}
    evaluation = {"n_prompts": {"en": 24}}
    return {**task, "command": "saescope", "methods": methods, "evaluation": evaluation}


@pytest.mark.parametrize(
    ("feature", "means", "match", "said"),
    [
        (
            [0.8, 0.7, 0.9],
            [0.4, 0.2, 0.5],
            "matched",
            "the difference of means in one (to Japanese)",
        ),
        ([0.2, 0.1, 0.3], [0.6, 0.5, 0.7], "matched", "clearly lower in one (to Japanese)"),
        ([0.5, 0.3, 0.7], [0.6, 0.5, 0.7], "matched", "in none and clearly lower in none"),
        ([0.8, 0.7, 0.9], [0.4, 0.2, 0.5], "wrecked", "higher than doing nothing in one"),
    ],
)
def test_ways_are_compared_by_intervals_and_wrecked_ones_left_out(
    feature: list[float], means: list[float], match: str, said: str
) -> None:
    results = {
        "tasks": {"force-ja": _task(feature, means, match)},
        "translations": {"ja": {"n": 20, "own": 0.7, "swapped": 0.0}, "zh": None},
    }
    text = " ".join(forcing.section(results).split())
    assert said in text
    assert ("than the difference of means" in text) == (match != "wrecked")


def test_a_continuation_is_recognised_after_its_own_beginning() -> None:
    lm = ss.load_lm("saescope-tiny")
    beginnings = ["The red dog ", "丘が", "import "]
    continuations = ["sleeps behind the house.", "家の後ろにあります。", "numpy as np"]
    own = relevance(lm, beginnings, continuations)
    assert own.mean() > 0.3
    assert relevance(lm, beginnings, ["", "", ""]).tolist() == [0.0, 0.0, 0.0]


def test_the_score_is_the_harmonic_mean_with_an_interval_over_prompts() -> None:
    assert harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)
    assert harmonic_mean(0.5, -0.1) == 0.0
    figures = score_ci(np.array([1.0, 1.0, 0.0, 0.0] * 10), np.ones(40))
    value, low, high = figures["score"]
    assert value == pytest.approx(2 / 3)
    assert low < value < high
    assert figures["relevance"] == [1.0, 1.0, 1.0]


def test_the_stand_in_has_the_sizes_of_the_checkpoint(tmp_path: Path) -> None:
    shape = SHAPES["tiny"]
    large._write_stand_in(shape, tmp_path / "model")
    headers = sum(int.from_bytes(f.read_bytes()[:8], "little") + 8 for f in _shards(tmp_path))
    sizes = sum(file.stat().st_size for file in _shards(tmp_path))
    assert sizes - headers == shape.model_bytes


def _shards(folder: Path) -> list[Path]:
    return sorted((folder / "model").glob("*.safetensors"))


def test_pictures_are_the_same_bytes_again(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    drawn = []
    for _ in range(2):
        layers._draw(folder, _layers((0.9, [0.8, 1.0]), zero=1.6))
        languages._draw_rates(folder, _languages(0.9, as_good=True))
        drawn.append([path.read_bytes() for path in sorted(folder.results.glob("*.svg"))])
    assert len(drawn[0]) == 2
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("costs", [(1.6, 0.02), (0.01, 0.4), (0.06, 0.05)])
def test_removal_says_for_which_languages_it_is_cheap(costs: tuple[float, float]) -> None:
    zero, mean = costs
    one = {"feature": "15/7", "rates": [0.8, 0.02], "zero": zero, "mean": mean}
    results = {
        "layer": 15,
        "mean_norm": 22786.0,
        "spread": 8115.0,
        "positions": 900,
        "texts": 64,
        "measured_on": 16,
        "features": {"ja": one, "en": {**one, "mean": 0.01}},
        "random": {"zero": 0.07, "mean": 0.06},
    }
    text = " ".join(removal.section(results).split())
    cheap, _, dear = (
        text.partition("0.05 nats per token for ")[2].partition(".")[0].partition(", and more for ")
    )
    assert ("Japanese" in cheap) == (mean < 0.05)
    assert ("Japanese" in dear) == (mean >= 0.05)
    assert "English" in cheap
