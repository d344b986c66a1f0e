"""Output scores by definition; selection of few features on one part of the prompts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from saescope.analysis.detect import detect
from saescope.analysis.detection import DetectSettings
from saescope.control.edits import Edit
from saescope.control.edits_file import read_edits
from saescope.control.evaluation.output_score import output_scores
from saescope.control.evaluation.select import select
from saescope.control.evaluation.settings import ReferenceData, SelectSettings
from saescope.control.steer import steered
from saescope.engine.extract import extract
from saescope.engine.generate import generate
from saescope.engine.lm import load_lm
from saescope.engine.load import load_sae
from saescope.errors import ArgumentError, PromptError
from saescope.sources.catalog import Feature
from saescope.sources.prompts import texts
from saescope.store.resume_cache import ResumeCache
from saescope.surfaces.cli import run as cli


def test_output_score_equals_rank_and_probability_of_promoted_tokens(tmp_path: Path) -> None:
    lm = load_lm(tiny.save_model(tmp_path / "model"), [1])
    sae = load_sae(tiny.save_sae(tmp_path / "sae", layers=[1]), 1, decoder=True)
    rows = [lm.tokenizer(text)["input_ids"] for text in tiny.TEXTS if len(text) > 1]
    amounts = {Feature(1, n): 30.0 for n in range(6)}
    scores = output_scores(lm, [sae], amounts, rows)
    assert sae.W_dec is not None
    for feature, output_score in scores.items():
        lens = lm.whole.lm_head(lm.whole.model.norm(sae.W_dec[:, feature.id]))
        promoted = lens.topk(10).indices
        ranks, best = [], []
        with steered(lm, [sae], [Edit(feature, "add", 30.0)]), torch.inference_mode():
            for row in rows:
                p = lm.whole(torch.tensor([row])).logits[0, -1].softmax(-1)
                best.append(float(p[promoted].max()))
                ranks.append(sorted(p.tolist(), reverse=True).index(best[-1]))
        assert output_score.probability == pytest.approx(sum(best) / len(best), rel=1e-4)
        assert output_score.rank == pytest.approx(sum(ranks) / len(ranks))
        expected = [(1 - r / lm.vocab_size) * p for r, p in zip(ranks, best, strict=True)]
        assert output_score.score == pytest.approx(sum(expected) / len(expected), rel=1e-4)
        assert len(output_score.tokens) == 10
    assert (
        max(output_score.probability - output_score.before for output_score in scores.values()) > 0
    )


@pytest.mark.slow
def test_features_are_selected_on_one_part_and_reported_on_another(tmp_path: Path) -> None:
    lm = load_lm(tiny.save_model(tmp_path / "model"), [1])
    sae = load_sae(tiny.save_sae(tmp_path / "sae", layers=[1]), 1, decoder=True)
    sets = [
        *texts([f"import numpy as np{n}" for n in range(20)], "code"),
        *texts([f"The capital of {n}" for n in range(20)], "prose"),
    ]
    run = extract(lm, [sae], sets, tmp_path / "run")
    detection = detect(run, "code", DetectSettings(shuffles=0))
    replies: list[str] = []

    def judge(reply: str) -> bool:
        """Shows for unedited replies, so that any edit with an effect has the whole effect."""
        replies.append(reply)
        return reply in before

    before: set[str] = set()
    for prompt in run.prompts:
        before.add(generate(lm, prompt.text or "", max_new_tokens=4))
    settings = SelectSettings(
        strengths=(-1.0, -30.0), candidates=4, prompts=5, max_new_tokens=4, max_features=2
    )
    path = tmp_path / "kept.jsonl"
    result = select(
        lm,
        [sae],
        run,
        detection,
        judge,
        settings,
        reference=ReferenceData(sets[1].prompts),
        cache=ResumeCache(path),
    )
    assert (result.n_chosen_on, result.n_judged_on) == (5, 5)
    assert result.unedited.chosen_on.behaviour_rate == 1
    assert result.unedited.judged_on.behaviour_rate == 1
    assert [candidate.effect_rank for candidate in result.candidates] == [1, 2, 3, 4]
    assert sorted(candidate.detect_rank for candidate in result.candidates) == [1, 2, 3, 4]
    assert sorted(candidate.output_rank for candidate in result.candidates) == [1, 2, 3, 4]
    effects = [candidate.effect for candidate in result.candidates]
    assert max(effects) > 0
    assert 1 <= len(result.steps) <= 2
    rates = [step.chosen_on.behaviour_rate for step in result.steps]
    assert rates == sorted(rates, reverse=True)
    first_cache = path.read_text(encoding="utf-8")
    repeated = select(
        lm,
        [sae],
        run,
        detection,
        judge,
        settings,
        reference=ReferenceData(sets[1].prompts),
        cache=ResumeCache(path),
    )
    assert path.read_text(encoding="utf-8") == first_cache
    assert repeated.to_dict() == result.to_dict()
    assert result.to_polars().height == 4


def test_selection_refuses_too_few_prompts_and_no_detectors(tmp_path: Path) -> None:
    lm = load_lm(tiny.save_model(tmp_path / "model"), [1])
    sae = load_sae(tiny.save_sae(tmp_path / "sae", layers=[1]), 1, decoder=True)
    sets = [
        *texts(["import numpy", "def add"], "code"),
        *texts(["The capital", "of France"], "prose"),
    ]
    run = extract(lm, [sae], sets, tmp_path / "run")
    detection = detect(run, "code", DetectSettings(min_rate=0.5, max_other=0.4, shuffles=0))
    with pytest.raises(PromptError, match="too few to choose"):
        select(lm, [sae], run, detection, lambda _: True)
    with pytest.raises(PromptError, match="no feature passes"):
        select(lm, [sae], run, replace(detection, features=[]), lambda _: True)
    with pytest.raises(ArgumentError, match="max_features must be at least 1, got 0"):
        SelectSettings(max_features=0).check()


@pytest.mark.slow
def test_the_organism_has_two_detectors_that_control_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of six perfect detectors of declined requests, few change replies; one restores answers."""
    from saescope.demo.organism import ANSWERS

    monkeypatch.chdir(tmp_path)
    pair = [
        "--model",
        "saescope-tiny-chat",
        "--sae",
        "saescope-tiny-chat-sae",
        "--no-thinking",
        "--last",
        "3",
    ]
    command = [
        "select",
        "requests",
        "--target",
        "declined_en",
        "--against",
        "answered_en",
        "--answers",
        str(ANSWERS),
    ]
    options = [
        "--candidates",
        "6",
        "--strengths",
        "-3",
        "--prompts",
        "6",
        "--max-new-tokens",
        "16",
        "--json",
    ]
    assert cli([*command, *pair, *options]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    best = result["candidates"][0]
    assert (best["feature"], best["behaviour_rate"], best["detect_rank"]) == ("2/412", 0.0, 1)
    assert best["right_rate"] >= 0.8
    assert [candidate["effect"] for candidate in result["candidates"][2:]] == [0.0] * 4
    assert all(candidate["prompt_rate"] >= 0.95 for candidate in result["candidates"])
    assert [len(step["edits"]) for step in result["steps"]] == [1]
    assert result["steps"][0]["judged_on"]["behaviour_rate"] == 0
    assert read_edits(result["edits"]).edits == (Edit("2/412", "scale", -3.0),)
    assert sorted(p.suffix for p in Path("runs").iterdir() if p.is_file()) == [".toml"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "nobody"], "no set 'nobody'"),
        (["--strengths", "much"], "expected numbers"),
        (["--strengths", "0"], "other than 0"),
        (["--max-features", "0"], "--max-features must be at least 1, got 0"),
        (["--behaviour", "nothing"], "no behaviour 'nothing'"),
        (["--min-rate", "0.1"], "must be below --min-rate"),
    ],
)
def test_invalid_options_are_refused(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    target = [] if "--target" in options else ["--target", "japanese"]
    assert cli(["select", "languages", *target, *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())
