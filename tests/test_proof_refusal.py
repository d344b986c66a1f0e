"""Sections about refusals, selectivity and tokens say what their figures say, either way."""

import copy
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from proof.experiments import selectivity, tokens
from proof.experiments.refusal import kappa
from proof.experiments.refusal_section import section as refusal_section
from proof.second_reader import declines
from saescope.demo import MODEL


def test_the_second_reader_goes_by_grammar() -> None:
    assert declines("I'm sorry for any mistakes, but as a chatbot I don't have a birthday.")
    assert declines("I am not able to open web pages.")
    assert declines("I must decline to write this letter.")
    assert not declines("The capital of France is Paris.")
    assert not declines("I'm happy to help! I have two sisters.")
    assert not declines('You can say: "I am not able to come on Friday."')
    assert not declines("Sure. Here it is. That is all. I cannot say more.")  # the fourth sentence


def test_kappa_is_cohens() -> None:
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    assert kappa(pairs) == pytest.approx(0.4)
    assert kappa([(True, True)] * 3) is None


def row(own: float, other: float, right: float, kl: float, **names: Any) -> dict[str, Any]:
    def part(declined: float, right: float) -> dict[str, Any]:
        return {"n": 120, "declined": declined, "ci": [0.0, 1.0], "right": right}

    parts = {"own": part(own, 1 - own), "other": part(other, 1 - other), "rest": part(0.0, right)}
    return {"name": "edits", "strength": 1.0, "match": None, "kl": kl, **parts, **names}


def topic(other_after: float, means_own: float) -> dict[str, Any]:
    features = [row(0.6, 1.0, 0.99, 0.001), row(0.05, other_after, 0.99, 0.002, strength=1.5)]
    return {
        "commands": ["saescope evaluate"],
        "other": "tiger",
        "features": [["2/5", -3.0]],
        "layer": 2,
        "passing": 9,
        "candidates": 12,
        "cosines": {"2/5": [0.7, 0.1]},
        "before": row(1.0, 1.0, 0.99, 0.0, name="none"),
        "sweeps": {
            "features": features,
            "means, project": [row(means_own, 0.98, 0.99, 0.004)],
            "means, subtract": [row(0.0, 0.4, 0.5, 0.4)],
        },
        "controls": [row(1.0, 1.0, 0.98, 0.0, name="zero")],
        "chosen_strength": 1.5,
        "verdict": "It goes.",
    }


@pytest.mark.parametrize(
    ("other_after", "means_own", "expected"),
    [
        (0.99, 0.0, ("SAE features leave 99 % of tiger", "selective", "projected out leaves 98 %")),
        (0.50, 0.0, ("SAE features leave 50 % of tiger", "not selective")),
        (0.99, 0.5, ("projected out does not release lighthouse: at best 50 %",)),
    ],
)
def test_selectivity_is_said_as_measured(
    other_after: float, means_own: float, expected: tuple[str, ...]
) -> None:
    figures = topic(other_after, means_own)
    results = {"commands": ["saescope x"], "cosine": 0.45, "topics": {"lighthouse": figures}}
    text = " ".join(selectivity.section(results).split())
    assert all(words in text for words in expected), text
    done, stays, kl = selectivity.judged(figures, "features")
    assert (done, stays, kl) == (True, other_after == 0.99, 0.002)
    assert selectivity.matched(figures["sweeps"]["features"], 0.0019)["kl"] == 0.002


def plan() -> dict[str, Any]:
    def condition(name: str, rate: float, kl: float | None, strength: float | None) -> Any:
        sets = {n: {"rate": r, "ci": [0, 1], "n": 50} for n, r in (("no", rate), ("yes", 0.0))}
        figures = {"rate": rate, "ci": [0.0, 1.0], "kl": kl, "strength": strength}
        return {
            "name": name,
            "draws": 1,
            "spread": None,
            "repetition": 0.1,
            "match": None,
            **figures,
            "sets": sets,
            "second": {"no": rate, "yes": 0.0},
        }

    candidate = {
        "feature": "9/1",
        "detect_rank": 1,
        "prompt_rate": 1.0,
        "prompt_other_rate": 0.0,
        "output_rank": 1,
        "effect_rank": 2,
        "effect": 0.1,
        "strength": -4.0,
        "behaviour_rate": 0.9,
        "kl_mean": 0.1,
    }
    counts = {
        "no": {"n": 50, "phrases": 50, "second": 49},
        "yes": {"n": 50, "phrases": 0, "second": 1},
    }
    after = {
        "no": {"n": 50, "phrases": 5, "second": 6},
        "yes": {"n": 50, "phrases": 0, "second": 0},
    }
    return {
        "contrast": {"9": {"feature": "9/1", "holdout_rate": 0.9, "holdout_other_rate": 0.1}},
        "detect": {"passing": 2, "by_layer": {"9": 2}},
        "strict": {"passing": 2, "by_layer": {"9": 2}},
        "against": ["yes"],
        "select": [candidate, {**candidate, "detect_rank": 2, "effect_rank": 1, "effect": 0.8}],
        "commands": ["saescope contrast"],
        "chosen": [["9/1", -4.0]],
        "sets": {"no": 50, "yes": 50},
        "declined": "no",
        "strength": 1.0,
        "conditions": [
            condition("none", 1.0, 0.0, None),
            condition("edits", 0.04, 0.2, 1.0),
            condition("difference of means, add", 0.0, 0.3, -1.0),
        ],
        "verdict": "It goes.",
        "judge_error": None,
        "second_error": {"missed": 5, "of_shown": 48, "flagged": 2, "of_others": 48},
        "agreement": {"replies": 300, "kappa": 0.97, "same": 0.99},
        "stock": [
            {"name": "the model", "sets": counts},
            {"name": "baked", "method": "bias", "exact": True, "forced": False, "sets": after},
        ],
        "examples": [
            {"set": "no", "request": "Why?", "before": "a | b", "steered": "c", "baked": "d"}
        ],
    }


def test_the_plans_aim_is_judged_by_its_figures() -> None:
    results = plan()
    text = " ".join(refusal_section(results).split())
    assert "is met: the features leave at best 4 % (KL 0.2)" in text
    assert "Declined before: 50 of 50; after: baked: 10 % (4-21)" in text
    assert "kappa 0.97" in text
    assert "1 of 2 move the rate" in text
    assert "is number 2 by effect (10 %)" in text
    assert "a \\| b" in text
    worse = copy.deepcopy(results)
    worse["conditions"][1]["rate"] = 0.25
    worse["stock"][1]["forced"] = True
    worse["strict"]["passing"] = 0
    assert "Against yes alone" not in text
    text = " ".join(refusal_section(worse).split())
    assert "is not met: the features leave at best 25 %" in text
    assert "*Forced* means" in text
    assert "none passes. Against yes alone 2 pass (2 at layer 9)" in text


def language(per_text: float, characters: float, fragments: float = 0.0) -> dict[str, Any]:
    return {
        "tokens": 100,
        "per_text": per_text,
        "characters_per_token": characters,
        "bytes_per_token": 2.9,
        "fragments": fragments,
        "ratio": 1.0,
        "ratio_95": [0.9, 1.1],
    }


def table_of_tokens() -> dict[str, Any]:
    rows = {"zh": language(20, 1.6), "en": language(22, 5.0), "ja": language(34, 1.5)}
    rows |= {"hi": language(110, 1.1, 0.5), "eu": language(45, 2.7), "eo": language(40, 2.6)}
    return {
        "splits": [
            {"text": text, "stated": list(stated), "found": list(stated)}
            for text, stated in tokens.SPLITS
        ],
        "first_words": dict.fromkeys(tokens.FIRST_WORDS, 1),
        "signed": {
            "text": "मैं",
            "pieces": ["म", "\\xe0\\xa5", "\\x88", "ं"],
            "signs": 100,
            "divided": 15,
        },
        "kinds": {"help": {"texts": 10, "languages": rows}},
    }


def verdicts(results: dict[str, Any]) -> dict[str, str]:
    return {one.claim: one.verdict for one in tokens.claims(results)}


def test_claims_about_tokens_are_judged_by_what_was_measured() -> None:
    results = table_of_tokens()
    found = verdicts(results)
    assert found["In `hodiaŭ`, `ŭ` falls into bytes"] == "wrong"
    assert found["The same content takes fewest tokens in Chinese"] == "right"
    assert found["Hindi's combining signs are divided into bytes"] == "in part"
    results["kinds"]["help"]["languages"]["en"]["per_text"] = 19
    results["signed"]["divided"] = 90
    results["splits"][-1]["found"] = [" h", "odia", "\\xc5", "\\xad"]
    results["splits"][3]["found"] = ["Kal", "txì"]
    results["first_words"]["Was"] = 2
    found = verdicts(results)
    assert found["In `hodiaŭ`, `ŭ` falls into bytes"] == "right"
    assert found["The same content takes fewest tokens in Chinese"] == "in part"
    assert found["Hindi's combining signs are divided into bytes"] == "right"
    assert found["`Kaltxì` is `K`, `alt`, `x`, `ì`"] == "wrong"
    assert [v for claim, v in found.items() if "single token" in claim] == ["wrong"]
    n_right = list(found.values()).count("right")
    assert f"{n_right} are right" in " ".join(tokens.section(results).split())


def test_parts_of_characters_are_counted_in_a_real_vocabulary() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL, trust_remote_code=False)
    text = "घर में पानी है"
    divided = tokens.signs(tokenizer, [text])
    assert divided["signs"] == 5
    pieces = tokens.pieces(tokenizer, text)
    whole = sum(character in "".join(p for p in pieces if "\\x" not in p) for character in "ेंाी")
    assert 0 <= divided["divided"] <= divided["signs"] - whole + 1
    rare = tokens.signs(tokenizer, ["ॳॊ"])  # a sign that no word of the model's texts has
    assert rare == {"signs": 1, "divided": 1}
    assert tokens.fragments(tokenizer, ["ॳॊ"]) == 1
    assert tokens.fragments(tokenizer, ["The house"]) == 0
    figures = tokens.measure(tokenizer, {"zh": ["猫在家。", "猫"], "en": ["The cat.", "cat"]})
    english = figures["languages"]["en"]
    low, high = english["ratio_95"]
    assert low <= english["ratio"] <= high
    assert figures["languages"]["zh"]["ratio_95"] == [1.0, 1.0]
