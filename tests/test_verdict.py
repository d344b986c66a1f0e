"""The verdict names each failure mode where the figures show it, and none where they do not."""

from collections.abc import Sequence
from typing import Any

import pytest

from saescope.control.evaluation.arm_results import ArmResult, SetResult
from saescope.control.evaluation.damage import Damage
from saescope.control.evaluation.effects import Baseline
from saescope.control.evaluation.verdict import Evidence, choose, verdict

SMALL, LARGE = Damage(100, 0.01, 0.02, 0.03, 0.0, 1.01), Damage(100, 0.9, 2.0, 3.0, 0.4, 2.5)


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
    assert verdict_text() == f"{change} with 1 feature at 1 times the strength."


def test_verdict_reports_difference_of_means() -> None:
    assert names(row(PROJECT, 0.01), row(ADD, 0.7)) == ["effect", "difference of means"]
    text = verdict_text(row(PROJECT, 0.01), row(ADD, 0.01, damage=LARGE))
    assert "Difference of means, project, does it too (1 % (0-6), KL 0.01)" in text
    assert "add, does it too (1 % (0-6), KL 0.9) and loses capability (KL 0.9" in text
    assert "does not do it (70 %" in verdict_text(row(PROJECT, 0.7))


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
    assert names(*controls, edits=edits) == expected
    assert ("was not measured" in verdict_text(*controls, edits=edits)) == (means is None)


def test_a_baseline_that_breaks_the_model_explains_nothing() -> None:
    broken = row(PROJECT, 0.0, damage=LARGE)
    assert names(broken, edits=SAME)[-1] == "another mechanism"
    assert "loses capability" in verdict_text(broken, edits=SAME)
    assert names(broken, row(ADD, 0.02), edits=SAME)[-1] == "several features needed"


def test_a_baseline_that_brings_the_behaviour_at_a_cost_has_brought_it() -> None:
    base, weak = row("none", 0.0), row("edits", 0.6)
    controls = [row(PROJECT, 0.0), row(ADD, 0.95, damage=LARGE)]
    assert names(*controls, base=base, edits=weak) == [
        "effect",
        "partial",
        "several features needed",
    ]
    assert (
        "add, at the same layer, does it whole (95 % (90-100), and loses capability (KL 0.9"
        in verdict_text(*controls, base=base, edits=weak)
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
    assert f"{control} (10 % (5-15))" in verdict_text(row(control, 0.1))
    assert "not specific" not in names(row(control, 0.6))


def drawn(*rates: float) -> ArmResult:
    draws = [{"behaviour_rate": rate} for rate in rates]
    return row("random feature", sum(rates) / len(rates), draws=len(rates), each=draws)


def test_single_draws_are_told_from_a_control_that_does_the_same() -> None:
    assert names(drawn(0.9, 0.95, 0.93)) == ["effect"]
    assert names(drawn(0.1, 0.95, 0.95)) == ["effect", "some draws"]
    assert "1 of 3 draws of a random feature (to 10 %)" in verdict_text(drawn(0.1, 0.95, 0.95))
    assert names(drawn(0.1, 0.2, 0.95, 0.95)) == ["effect", "not specific"]  # half of them
    assert names(drawn(0.0, 0.5, 0.5)) == ["effect", "not specific"]  # on average
    assert names(drawn(1.0, 1.0, 0.95)) == ["effect"]


def test_instruction_with_the_same_effect_is_named() -> None:
    assert names(row("prompt only", 0.04)) == ["effect", "prompt alone"]
    assert names(row("prompt only", 0.7)) == ["effect"]


def test_nothing_applied_and_nothing_scored() -> None:
    assert names(edits=row("edits", 0.95, applied=False)) == ["effect", "nothing applied"]
    assert names(edits=row("edits", None, scored=0, unscored=100)) == ["nothing scored"]
    assert "without edits" in verdict_text(base=row("none", None))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"damage": LARGE}, "KL 0.9 per token on neutral text, perplexity 2.50 times"),
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
