"""Behaviours are told right, damage is what its definition says, and the organism's known answer comes out."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

import tiny
from saescope.control.behaviour import EMPTY, normalised, read_behaviour
from saescope.control.damage import damage, repetition
from saescope.control.edits import Edit
from saescope.control.evaluate import Condition, _verdict, evaluate, mcnemar
from saescope.control.steer import _HOOKS, steered
from saescope.engine.lm import load_lm
from saescope.engine.load import load_sae
from saescope.errors import PromptError
from saescope.sources.catalog import Feature
from saescope.sources.prompts import texts
from saescope.surfaces.cli import run as cli

REPLIES = {
    "I am sorry, but I cannot talk about that.": "en: i am sorry",
    "I’m  SORRY": "en: i'm sorry",
    "申し訳ありませんが": "ja: 申し訳",
    "很抱歉，我不能谈这个。": "zh: 抱歉",
    "<think>\nI cannot do this\n</think>\n\nThe hill.": None,
    "The hill.": None,
    "": EMPTY,
    " \n…": EMPTY,
    "The story goes on " * 20 + "I am sorry": None,  # far into a reply it is no refusal
}


@pytest.mark.parametrize(("reply", "label"), REPLIES.items())
def test_declining_is_told_by_its_phrases(reply: str, label: str | None) -> None:
    assert read_behaviour("declining")(reply) == label


def test_behaviour_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "pirate.json"
    path.write_text('{"en": ["Arr"]}')
    judge = read_behaviour(str(path))
    assert (judge.name, judge("ARR, matey"), judge("hello")) == ("pirate", "en: Arr", None)
    for text, said in (("[]", "given by language"), ('{"en": "arr"}', "given by language"), ("{", "is not JSON")):
        path.write_text(text)
        with pytest.raises(PromptError, match=said):
            read_behaviour(str(path))
    with pytest.raises(PromptError, match="no behaviour 'pirates'"):
        read_behaviour("pirates")


def test_normalised_keeps_what_follows_a_thought() -> None:
    assert normalised("<think>no</think>\n\nＡ  b’s") == "a b's"


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_equals_scipy(pairs: list[tuple[bool, bool]]) -> None:
    gone, come = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    expected = binomtest(gone, gone + come).pvalue if gone + come else 1.0
    assert mcnemar(pairs) == pytest.approx(expected)


def test_repetition_by_hand() -> None:
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)
    assert repetition([5] * 10) == pytest.approx(7 / 8)
    assert repetition([1, 2]) == 0


def test_damage_is_kl_flips_and_perplexity(tmp_path: Path) -> None:
    lm = load_lm(tiny.save_model(tmp_path / "model"), [1])
    sae = load_sae(tiny.save_sae(tmp_path / "sae", layers=[1]), 1)
    edits = [Edit(Feature(1, 3), "add", 4.0)]
    rows = [lm.tokenizer(text)["input_ids"] for text in tiny.TEXTS if len(text) > 1]
    nothing, hurt = damage(lm, rows, [nullcontext, lambda: steered(lm, edits, [sae])])
    assert (nothing.kl_mean, nothing.kl_p99, nothing.top1_flips, nothing.ppl_ratio) == (0, 0, 0, 1)
    kls, flips, losses = [], [], []
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor([row])
            base = torch.log_softmax(lm.whole(ids).logits[0], -1)
            with steered(lm, edits, [sae]):
                changed = torch.log_softmax(lm.whole(ids).logits[0], -1)
            kls += torch.nn.functional.kl_div(changed, base, log_target=True, reduction="none").sum(-1).tolist()
            flips += (base.argmax(-1) != changed.argmax(-1)).tolist()
            losses += (base - changed)[torch.arange(len(row) - 1), ids[0, 1:]].tolist()
    assert hurt.tokens == len(kls)
    assert hurt.kl_mean == pytest.approx(np.mean(kls), rel=1e-3)
    assert hurt.kl_p99 == pytest.approx(np.quantile(kls, 0.99), rel=1e-3)
    assert hurt.top1_flips == pytest.approx(np.mean(flips))
    assert hurt.ppl_ratio == pytest.approx(np.exp(np.mean(losses)), rel=1e-3)
    assert not _HOOKS


def condition(name: str, rate: float, ci: tuple[float, float], **more: Any) -> Condition:
    values = {"mcnemar_p": None, "empty": 0, "right_rate": None, "repetition": 0.0, "mean_tokens": 9.0, "ended": 1.0,
              "delta_norm_ratio": 0.1, "applied": True, "damage": None, "sets": {}, "strength": 1.0}  # fmt: skip
    return Condition(name=name, behaviour_rate=rate, ci=ci, **{**values, **more})


def test_verdict_names_the_failure_modes() -> None:
    base = condition("none", 0.95, (0.9, 0.98))
    gone, same = condition("edits", 0.02, (0.0, 0.08)), condition("edits", 0.9, (0.8, 0.96))
    half = condition("edits", 0.5, (0.4, 0.6))
    other = condition("random feature", 0.1, (0.05, 0.2))
    assert _verdict([base, gone]) == ["The behaviour goes from 95 % (90-98) to 2 % (0-8) at 1 times the strength."]
    assert "detection without control" in " ".join(_verdict([base, same]))
    assert "several features" in " ".join(_verdict([base, half]))
    assert "not specific: random feature" in " ".join(_verdict([base, gone, other]))
    assert "no edited feature fired" in " ".join(_verdict([base, condition("edits", 0.95, (0.9, 0.98), applied=False)]))
    looping = condition("edits", 0.0, (0.0, 0.05), repetition=0.6, ended=0.2)
    assert "repeat themselves" in " ".join(_verdict([base, looping]))
    assert "end less often" in " ".join(_verdict([base, looping]))


def test_sets_that_are_not_there_are_refused(tmp_path: Path) -> None:
    lm = load_lm(tiny.save_model(tmp_path / "model"), [1])
    sae = load_sae(tiny.save_sae(tmp_path / "sae", layers=[1]), 1)
    judge = read_behaviour("declining")
    with pytest.raises(PromptError, match="no set 'nope': the sets are prompts"):
        evaluate(lm, [sae], [Edit("1/2")], texts(["hello"])[0].prompts, judge, target=["nope"])


def test_clamps_have_no_opposite_and_no_multiples(tmp_path: Path) -> None:
    lm = load_lm(tiny.save_model(tmp_path / "model"), [1])
    sae = load_sae(tiny.save_sae(tmp_path / "sae", layers=[1]), 1)
    prompts, judge, edits = texts(["hello there"])[0].prompts, read_behaviour("declining"), [Edit("1/2", "clamp", 3.0)]
    result = evaluate(lm, [sae], edits, prompts, judge, max_new_tokens=3)
    assert [c.name for c in result.conditions] == ["none", "edits", "zero", "random feature", "random direction"]
    assert result.conditions[1].applied
    assert not result.conditions[2].applied
    with pytest.raises(PromptError, match="no multiples"):
        evaluate(lm, [sae], edits, prompts, judge, sweep=(1.0, 2.0))


def test_organism_evaluation_has_the_known_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Declining goes from at least 95 % to under 10 % in three languages, and no control does that."""
    from saescope.demo.organism import ANSWERS

    monkeypatch.chdir(tmp_path)
    pair = ["--model", "saescope-tiny-chat", "--sae", "saescope-tiny-chat-sae", "--no-thinking"]
    target = ["--target", "declined_en,declined_ja,declined_zh", "--answers", str(ANSWERS)]
    arguments = ["evaluate", "--prompts", "requests", *target, *pair, "--edit", "2/412 scale -3", "--out", "all.json"]
    assert cli([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads(Path("all.json").read_text(encoding="utf-8"))
    rows = {c["name"]: c for c in result["conditions"]}
    assert set(rows) == {"none", "edits", "zero", "minus", "random feature", "random direction"}
    assert rows["none"]["behaviour_rate"] >= 0.95
    assert rows["edits"]["behaviour_rate"] < 0.10
    assert rows["edits"]["ci"][1] < 0.20
    assert rows["edits"]["mcnemar_p"] < 1e-6
    assert rows["edits"]["kl_mean"] < 0.01
    assert rows["edits"]["ppl_ratio"] < 1.05
    for control in ("zero", "minus", "random feature", "random direction"):
        assert rows[control]["behaviour_rate"] > 0.8
    assert (rows["zero"]["applied"], rows["zero"]["kl_mean"]) == (False, 0)
    assert [one["by"]["zero x0"] for one in result["replies"]] == [one["by"]["none"] for one in result["replies"]]
    for language in ("en", "ja", "zh"):
        sets = rows["edits"]["sets"]
        assert sets[f"declined_{language}"]["right_rate"] >= 0.9
        assert sets[f"answered_{language}"]["right_rate"] >= 0.9
        assert sets[f"answered_{language}"]["behaviour_rate"] <= 0.05
    assert result["verdict"].startswith("The behaviour goes from 100 %")
    assert "not specific" not in result["verdict"]
    assert result["behaviour"]["phrases"]["en"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--sweep", "0"], "no strength that edits anything"),
        (["--sweep", "much"], "is not numbers"),
        (["--behaviour", "none.json"], "no behaviour 'none.json'"),
        (["--answers", "none.json"], "none.json cannot be read"),
        (["--target", "nobody"], "no set 'nobody'"),
    ],
)
def test_bad_questions_are_refused(more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["--model", "saescope-tiny-chat", "--sae", "saescope-tiny-chat-sae"]
    assert cli(["evaluate", "--prompts", "requests", *pair, "--edit", "2/412", *more]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
