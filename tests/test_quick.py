"""`--quick` measures a sample and says so."""

import json
from pathlib import Path

import pytest

from saescope.control.evaluation.evaluate import quick_prompts, quick_texts
from saescope.control.evaluation.settings import EvaluateSettings, SelectSettings
from saescope.sources.prompt_sets import bundled_prompts
from saescope.sources.splits import spread
from saescope.surfaces.cli import run as cli


def test_spread_takes_items_at_even_distances():
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread("ab", 4) == ["a", "b"]


def test_quick_select_tries_less_and_never_more():
    sampled = SelectSettings(quick=True).sampled
    assert (sampled.candidates, sampled.prompts, sampled.strengths) == (6, 8, (-1.0, -3.0))
    few = SelectSettings(quick=True, candidates=2, prompts=3, strengths=(-2.0,)).sampled
    assert (few.candidates, few.prompts, few.strengths) == (2, 3, (-2.0,))
    assert SelectSettings().sampled == SelectSettings()
    assert SelectSettings(quick=True).sampled.to_dict()["quick"] is True


def test_goals_have_their_own_edits():
    assert SelectSettings().to_dict()["op"] == "scale"
    amplify = SelectSettings(goal="amplify")
    assert (amplify.edit_op, amplify.edit_strengths) == ("add", (0.5, 1.0, 2.0))


def test_quick_evaluate_samples_every_set_and_more_of_the_target():
    prompts = [prompt for group in bundled_prompts("requests") for prompt in group.prompts]
    sample = quick_prompts(prompts, ["declined_en"])
    counts = {}
    for prompt in sample:
        counts[prompt.set] = counts.get(prompt.set, 0) + 1
    assert counts.pop("declined_en") == 12
    assert set(counts.values()) == {6}
    neutral = [prompt for group in bundled_prompts("languages") for prompt in group.prompts]
    texts = quick_texts(neutral, ["japanese"])
    assert len(texts) == 32
    assert "japanese" not in {text.set for text in texts}
    assert EvaluateSettings(quick=True).sampled.draws == 1
    assert EvaluateSettings(quick=True, draws=0).sampled.draws == 0


@pytest.mark.slow
def test_the_result_says_that_it_was_quick_and_its_n(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", "--prompts", "languages", "--target", "japanese", "--edit", "2/5"]
    options = ["--behaviour", "language:ja", "--max-new-tokens", "1", "--quick", "--draws", "0"]
    assert cli([*arguments, *options, "--out", "e.json"]) == 0
    shown = capsys.readouterr().out
    assert "quick: measured on a sample (12 of japanese, 6 of english" in shown
    document = json.loads(Path("e.json").read_text())
    assert document["quick"] is True
    assert document["n_prompts"]["japanese"] == 12
    assert document["conditions"][0]["sets"].keys() == document["n_prompts"].keys()
