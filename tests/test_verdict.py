"""Each rule of the verdict yields its finding where the figures show it, and only there."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from saescope.control.evaluation.arm_results import ArmResult, Match, SetResult
from saescope.control.evaluation.damage import Damage
from saescope.control.evaluation.effects import Baseline, kl_text
from saescope.control.evaluation.evidence import Evidence, choose
from saescope.control.evaluation.verdict import verdict


def damage_of(kl: float, ppl: float = 1.01) -> Damage:
    return Damage(100, kl, 2 * kl, 3 * kl, 0.0, ppl)


SMALL, LARGE = damage_of(0.01), damage_of(0.9, ppl=2.5)


def row(name: str, rate: float | None, half: float = 0.05, **fields: Any) -> ArmResult:
    """A row whose interval is `half` to either side."""
    ci = (0.0, 1.0) if rate is None else (max(0.0, rate - half), min(1.0, rate + half))
    values: dict[str, Any] = {
        "mcnemar_p": None,
        "scored": 100,
        "empty": 0,
        "unscored": 0,
        "right_rate": None,
        "repetition": 0.0,
        "mean_tokens": 9.0,
        "ended": 1.0,
        "language_flip": 0.0,
        "off_language": 0.0,
        "delta_norm_ratio": 0.1,
        "spread_ratio": 0.2,
        "applied": True,
        "damage": SMALL,
        "sets": {},
        "strength": 1.0,
    }
    return ArmResult(name=name, behaviour_rate=rate, ci=ci, **{**values, **fields})


BASE = row("none", 0.95, strength=None, damage=None, applied=False)
GONE, HALF, SAME = row("edits", 0.02), row("edits", 0.5), row("edits", 0.93)
PROJECT, ADD = "difference of means, project", "difference of means, add"


def evidence(
    base: ArmResult, edits: ArmResult, controls: Sequence[ArmResult], **fields: Any
) -> Evidence:
    return Evidence(Baseline(base, **fields), [edits], controls, "1 feature")


def names(
    *controls: ArmResult, edits: ArmResult = GONE, base: ArmResult = BASE, **fields: Any
) -> list[str]:
    return [finding.name for finding in verdict(evidence(base, edits, controls, **fields))]


def verdict_text(*controls: ArmResult, edits: ArmResult = GONE, base: ArmResult = BASE) -> str:
    return " ".join(finding.text for finding in verdict(evidence(base, edits, controls)))


def test_working_edit_has_only_an_effect() -> None:
    controls = [
        row("zero", 0.95),
        row("minus", 0.99),
        row("random feature", 0.94),
        row("random direction", 0.9),
    ]
    assert names(*controls) == ["effect"]
    change = "The behaviour goes from 95 % (90-100) to 2 % (0-7)"
    assert verdict_text() == f"{change} with 1 feature at 1 times the strength, at KL 0.010."
    unmeasured = replace(GONE, damage=None)
    assert verdict_text(edits=unmeasured).endswith("1 times the strength.")


@pytest.mark.parametrize(
    ("kl", "match", "how"), [(0.009, "matched", "an equal"), (0.004, "milder", "a better")]
)
@pytest.mark.parametrize("name", [PROJECT, "minus"])
def test_a_control_that_goes_as_far_at_no_more_damage_is_an_equal_or_better_way(
    name: str, kl: float, match: Match, how: str
) -> None:
    control = row(name, 0.01, damage=damage_of(kl), match=match)
    assert "equal or better way" in names(control)
    figures = f"(1 % (0-6), KL {kl_text(kl)}; the edits 2 % (0-7), KL 0.010)"
    named = "Difference of means, project," if name == PROJECT else "Minus"
    assert f"{named} is {how} way {figures}." in verdict_text(control)


def test_a_control_that_goes_less_far_or_costs_more_is_no_equal_way() -> None:
    weak_edits = row("edits", 0.5)
    assert "equal or better way" in names(row(ADD, 0.55, match="matched"), edits=weak_edits)
    for control in (
        row(PROJECT, 0.15, match="matched"),  # 86 % of the edits' change, but clearly less
        row(PROJECT, 0.4, match="matched", half=0.4),  # not clear
        row(PROJECT, 0.02, match="costlier"),
        row(PROJECT, 0.02, match="matched", repetition=0.4),  # a loss that the edits do not have
        row(PROJECT, 0.02),  # its damage is not known
    ):
        assert "equal or better way" not in names(control)
    further = row(PROJECT, 0.3, match="matched")
    assert "a better way" in verdict_text(further, edits=weak_edits)


@pytest.mark.parametrize(
    ("rate", "match", "words"),
    [
        (0.02, "costlier", "does it too at more damage (2 % (0-7), KL 0.010)"),
        (0.02, None, "does it too (2 % (0-7), KL 0.010)"),
        (0.5, "matched", "does part of it at the same damage (50 % (45-55), KL 0.010)"),
        (0.93, "matched", "has no clear effect at the same damage (93 % (88-98), KL 0.010)"),
        (0.93, "milder", "has no clear effect at less damage (93 % (88-98), KL 0.010)"),
    ],
)
def test_difference_of_means_is_told_by_its_effect_and_damage(
    rate: float, match: Match | None, words: str
) -> None:
    control = row(PROJECT, rate, match=match)
    assert names(control) == ["effect", "difference of means"]
    assert f"Difference of means, project, {words}." in verdict_text(control)


def test_losses_of_the_difference_of_means_are_told() -> None:
    control = row(ADD, 0.01, match="costlier", damage=damage_of(0.09, ppl=1.3))
    words = "and loses capability (KL 0.090 per token on neutral text, perplexity 1.30 times)."
    assert words in verdict_text(control)


@pytest.mark.parametrize("edits", [GONE, HALF, SAME])
@pytest.mark.parametrize(
    "name", ["minus", "random feature", "random direction", PROJECT, ADD, "prompt only"]
)
def test_a_wrecked_control_is_left_out_and_named(name: str, edits: ArmResult) -> None:
    wrecked = row(name, 0.0, damage=LARGE, match="wrecked")
    assert set(names(wrecked, edits=edits)) - set(names(edits=edits)) == {"wrecked control"}
    left_out = f"{name} (KL 0.90 per token on neutral text, perplexity 2.50 times)."
    text = verdict_text(wrecked, edits=edits)
    assert f"Left out as no evidence, since the model is wrecked: {left_out}" in text


def test_wrecked_draws_are_counted() -> None:
    each = [{"behaviour_rate": 0.0}, {"behaviour_rate": 0.1}]
    wrecked = row("random direction", 0.05, damage=LARGE, match="wrecked", draws=2, each=each)
    assert names(wrecked) == ["effect", "wrecked control"]
    assert "2 draws of a random direction (KL 0.90" in verdict_text(wrecked)


def test_controls_at_other_damage_are_told() -> None:
    costlier = row("random feature", 0.1, match="costlier", damage=damage_of(0.05))
    assert names(costlier) == ["effect", "costlier control"]
    words = "Random feature (10 % (5-15), KL 0.050) moved it more than half as far, at more damage."
    assert words in verdict_text(costlier)
    assert names(replace(costlier, match="matched"))[1] == "not specific"
    milder = row("random direction", 0.94, match="milder", damage=damage_of(0.001))
    assert names(milder) == ["effect", "milder control"]
    words = (
        "Weak evidence, at less damage than the edits: random direction (94 % (89-99), KL 0.0010)."
    )
    assert words in verdict_text(milder)
    assert names(replace(milder, behaviour_rate=0.2, ci=(0.1, 0.3))) == ["effect", "not specific"]


@pytest.mark.parametrize(
    ("edits", "means", "expected"),
    [
        (SAME, 0.03, ["effect", "detection without control", "several features needed"]),
        (SAME, 0.9, ["effect", "detection without control", "another mechanism"]),
        (SAME, None, ["effect", "detection without control", "several features needed"]),
        (HALF, 0.03, ["effect", "partial", "several features needed"]),
        (HALF, 0.6, ["effect", "partial", "another mechanism"]),
        (HALF, None, ["effect", "partial", "several features needed"]),
    ],
)
def test_difference_of_means_explains_failures(
    edits: ArmResult, means: float | None, expected: list[str]
) -> None:
    controls = [] if means is None else [row(PROJECT, means)]
    assert names(*controls, edits=edits)[: len(expected)] == expected
    assert ("was not measured" in verdict_text(*controls, edits=edits)) == (means is None)


def test_no_clear_effect_is_not_told_as_no_change() -> None:
    few = row("edits", 0.3, half=0.6)
    assert names(edits=few)[1] == "detection without control"
    assert "no clear effect: the two intervals overlap" in verdict_text(edits=few)


def test_a_baseline_that_loses_capability_explains_nothing() -> None:
    lossy = row(PROJECT, 0.0, repetition=0.4)
    assert names(lossy, edits=SAME)[-1] == "another mechanism"
    assert "project, at the same layer, does it only at a loss (0 %" in verdict_text(
        lossy, edits=SAME
    )
    assert names(lossy, row(ADD, 0.02), edits=SAME)[-1] == "several features needed"
    wrecked = row(PROJECT, 0.0, damage=LARGE, match="wrecked")
    assert "wrecks the model, so it cannot tell" in verdict_text(wrecked, edits=SAME)


def test_a_baseline_at_little_damage_does_not_show_another_mechanism_alone() -> None:
    weak = row(PROJECT, 0.9, strength=0.2)
    assert "or another layer, or it takes more damage: diff" in verdict_text(weak, edits=SAME)
    assert "more damage" not in verdict_text(weak, row(ADD, 0.9), edits=SAME)


def test_a_baseline_that_brings_the_behaviour_at_a_cost_has_brought_it() -> None:
    base, weak = row("none", 0.0), row("edits", 0.6)
    controls = [row(PROJECT, 0.0), row(ADD, 0.95, damage=damage_of(0.09, ppl=1.3))]
    assert names(*controls, base=base, edits=weak)[:3] == [
        "effect",
        "partial",
        "several features needed",
    ]
    assert (
        "add, at the same layer, does it whole (95 % (90-100), KL 0.090, and loses capability "
        "(KL 0.090" in verdict_text(*controls, base=base, edits=weak)
    )


def test_amplifying_edit_is_judged_by_a_rise() -> None:
    base, amplified = row("none", 0.05), row("edits", 0.9)
    assert names(base=base, edits=amplified) == ["effect"]
    same_by_chance = row("random direction", 0.7)
    assert names(same_by_chance, base=base, edits=amplified) == ["effect", "not specific"]
    assert names(row("minus", 0.0), base=base, edits=amplified) == ["effect"]
    weak = row("edits", 0.06)
    assert names(row(ADD, 0.95), base=base, edits=weak)[-1] == "several features needed"


@pytest.mark.parametrize("control", ["zero", "minus", "random feature", "random direction"])
def test_a_control_that_does_the_same_is_named(control: str) -> None:
    assert "not specific" in names(row(control, 0.1))
    assert f"{control} (10 % (5-15), KL 0.010) moved it" in verdict_text(row(control, 0.1))
    assert "not specific" not in names(row(control, 0.6))


def drawn(*rates: float) -> ArmResult:
    draws = [{"behaviour_rate": rate} for rate in rates]
    return row("random feature", sum(rates) / len(rates), draws=len(rates), each=draws)


def test_single_draws_are_told_from_a_control_that_does_the_same() -> None:
    assert names(drawn(0.9, 0.95, 0.93)) == ["effect"]
    assert names(drawn(0.1, 0.95, 0.95)) == ["effect", "some draws"]
    assert "1 of 3 draws of a random feature (to 10 %)" in verdict_text(drawn(0.1, 0.95, 0.95))
    assert names(drawn(0.1, 0.2, 0.95, 0.95)) == ["effect", "not specific"]  # half of them
    assert "2 of 4 draws of a random feature (to 10 %) moved it more than half as far" in (
        verdict_text(drawn(0.1, 0.2, 0.95, 0.95))
    )
    assert names(drawn(0.0, 0.5, 0.5)) == ["effect", "not specific"]  # on average
    assert names(drawn(1.0, 1.0, 0.95)) == ["effect"]


def test_instruction_with_the_same_effect_is_named() -> None:
    assert names(row("prompt only", 0.04)) == ["effect", "prompt alone"]
    assert names(row("prompt only", 0.7)) == ["effect"]
    alone = verdict_text(row("prompt only", 0.04), edits=SAME)
    assert "An instruction in the prompt does it, without any edit (4 % (0-9))." in alone


def test_nothing_applied_and_nothing_scored() -> None:
    assert names(edits=row("edits", 0.95, applied=False)) == ["effect", "nothing applied"]
    assert names(edits=row("edits", None, scored=0, unscored=100)) == ["nothing scored"]
    assert "without edits" in verdict_text(base=row("none", None))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"damage": LARGE}, "KL 0.90 per token on neutral text, perplexity 2.50 times"),
        ({"repetition": 0.6}, "repeat themselves (0.60 of trigrams, 0.00 before)"),
        ({"ended": 0.2}, "end less often (20 %, 100 % before)"),
        ({"scored": 60, "empty": 40}, "40 % of the replies are empty (0 % before)"),
        ({"scored": 60, "unscored": 40}, "40 % of the replies are unscored (0 % before)"),
        ({"language_flip": 0.4}, "40 % of the replies are in another language"),
    ],
)
def test_lost_capability_is_a_finding(fields: dict[str, Any], words: str) -> None:
    assert names(edits=row("edits", 0.02, **fields))[-1] == "capability lost"
    assert words in verdict_text(edits=row("edits", 0.02, **fields))


def test_another_language_is_no_loss_where_it_is_the_behaviour() -> None:
    assert names(edits=row("edits", 0.02, language_flip=1.0), about_language=True) == ["effect"]


def test_right_answers_lost_are_named_by_set() -> None:
    def sets(right: float) -> dict[str, SetResult]:
        return {
            "other": SetResult(40, 40, 0.0, (0.0, 0.1), right),
            "none": SetResult(9, 9, 0.0, (0.0, 0.3), None),
        }

    base = row("none", 0.95, sets=sets(0.98))
    assert "right answers are lost on other (60 %, 98 % before)" in verdict_text(
        base=base, edits=row("edits", 0.02, sets=sets(0.6))
    )
    assert names(base=base, edits=row("edits", 0.02, sets=sets(0.95))) == ["effect"]
    assert names(base=base, edits=row("edits", 0.02, sets=sets(0.6)), target=["other"]) == [
        "effect"
    ]


def test_the_strength_is_chosen_by_effect_without_harm() -> None:
    weak, right = row("edits", 0.6, strength=1.0), row("edits", 0.02, strength=2.0)
    strong = row("edits", 0.0, strength=4.0, damage=LARGE)
    assert choose(Baseline(BASE), [weak, right, strong]) is right
    assert choose(Baseline(BASE), [weak, strong]) is weak
    assert choose(Baseline(BASE), [SAME, strong]) is strong  # else there would be no effect at all
    alike = [
        row("edits", 0.02, strength=s, damage=Damage(9, kl, kl, kl, 0.0, 1.0))
        for s, kl in ((2.0, 0.02), (3.0, 0.01))
    ]
    assert choose(Baseline(BASE), alike) is alike[1]
