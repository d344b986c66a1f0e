"""Controls are brought to the damage of the edits, or labelled by the damage that they do."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from saescope.control.edits import Edit
from saescope.control.evaluation.arms import Arm, times
from saescope.control.evaluation.control_rows import control_rows
from saescope.control.evaluation.damage import Damage
from saescope.control.evaluation.effects import Baseline
from saescope.control.evaluation.evaluate import evaluate
from saescope.control.evaluation.evaluation import Evaluation
from saescope.control.evaluation.matching import Control, at_matched_damage, damage_match
from saescope.control.evaluation.settings import EvaluateSettings, ReferenceData
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae
from saescope.sources.directions import Direction
from saescope.sources.prompts import texts
from test_verdict import damage_of, row

SCALE, CLAMP = (Edit("1/2", "scale", -1.0),), (Edit("1/2", "clamp", 3.0),)
PROJECT = (Edit(op="project", direction=Direction(1, np.ones(4), "mean")),)


def control(unit: tuple[Edit, ...] = SCALE, strength: float = 3.0, draw: str = "") -> Control:
    return Control(Arm("random feature", strength, times(unit, strength), draw=draw), unit)


class Model:
    """Damage as a function of an arm's strength, and how often it was measured."""

    def __init__(self, kl: Callable[[float], float]) -> None:
        self.kl = kl
        self.rounds: list[list[float]] = []

    def measure(self, arms: Sequence[Arm]) -> list[Damage]:
        strengths = [abs(arm.strength or 0.0) for arm in arms]
        self.rounds.append(strengths)
        return [Damage(9, kl, kl, kl, 0.0, 1.0) for kl in map(self.kl, strengths)]


@given(st.floats(-5, 3), st.floats(0.5, 4), st.floats(1e-4, 1.0), st.floats(0.5, 30))
@settings(deadline=None)
def test_search_finds_the_strength_of_any_power_that_saturates(
    log_scale: float, power: float, edits_kl: float, ceiling: float
) -> None:
    model = Model(lambda s: ceiling * -np.expm1(-(10**log_scale) * s**power / ceiling))
    [arm] = at_matched_damage([control()], edits_kl, model.measure)
    assert arm.strength == float(f"{arm.strength:.3g}")
    reachable = model.kl(0.15) < edits_kl < min(model.kl(60), 0.7 * ceiling)
    if reachable:
        assert damage_match(model.kl(arm.strength), edits_kl) == "matched"
    assert len(model.rounds) <= 16


def test_rounding_that_costs_more_than_the_edits_leaves_a_strength_that_means_something() -> None:
    model = Model(lambda s: 0.0012 + 0.05 * s * s if s else 0.0)
    [arm] = at_matched_damage([control(strength=1.0)], 0.0009, model.measure)
    assert arm.strength is not None
    assert model.kl(arm.strength) == pytest.approx(0.0024, rel=0.15)
    assert damage_match(model.kl(arm.strength), 0.0009) == "costlier"


def test_search_of_a_quadratic_takes_two_rounds_for_all_controls_at_once() -> None:
    model = Model(lambda s: 0.02 * s * s)
    controls = [control(strength=s) for s in (0.1, 1.0, 5.0)]
    arms = at_matched_damage(controls, 0.08, model.measure)
    assert [arm.strength for arm in arms] == pytest.approx([2.0, 2.0, 2.0])
    assert [len(strengths) for strengths in model.rounds] == [3, 3]
    assert [edit.amount for edit in arms[0].edits] == pytest.approx([-2.0])


def test_search_keeps_the_sign_and_ends_at_the_share_of_a_projection() -> None:
    minus = Control(Arm("minus", -3.0, times(SCALE, -3.0)), SCALE)
    [arm] = at_matched_damage([minus], 0.08, Model(lambda s: 0.02 * s * s).measure)
    assert arm.strength == pytest.approx(-2.0)
    assert arm.edits[0].amount == pytest.approx(2.0)
    for strength in (1.0, 4.0):
        saturating = Model(lambda s: 0.001 * min(s, 1.0) ** 2)
        [arm] = at_matched_damage([control(PROJECT, strength)], 0.08, saturating.measure)
        assert (arm.strength, arm.edits[0].amount) == (1.0, 1.0)
        assert max(map(max, saturating.rounds)) == 1.0


def test_controls_without_multiples_stay_as_they_are() -> None:
    model = Model(lambda _s: 1.0)
    fixed = [
        control(CLAMP, 1.0),
        Control(Arm("zero", 0.0, times(SCALE, 0.0))),
        Control(Arm("prompt only", instruction="Answer.")),
    ]
    assert at_matched_damage(fixed, 0.1, model.measure) == [one.arm for one in fixed]
    assert model.rounds == []


def test_control_that_damages_nothing_is_not_tried_beyond_a_limit() -> None:
    model = Model(lambda _s: 0.0)
    [arm] = at_matched_damage([control()], 0.1, model.measure)
    assert max(map(max, model.rounds)) == 90
    assert arm.strength in (3.0, 90.0)
    big = (Edit("1/2", "add", 9e5),)
    [arm] = at_matched_damage([control(big, 1.0)], 0.1, model.measure)
    assert abs(arm.edits[0].amount) < 1e6


@pytest.mark.parametrize(
    ("kl", "edits_kl", "match"),
    [
        (0.0, 0.0, "matched"),
        (0.00114, 0.001, "matched"),
        (0.00086, 0.001, "matched"),
        (0.00116, 0.001, "costlier"),
        (0.0, 0.001, "milder"),
        (0.0999, 0.001, "costlier"),
        (0.101, 0.001, "wrecked"),
        (0.59, 0.2, "costlier"),
        (0.61, 0.2, "wrecked"),
        (None, 0.2, None),
        (0.2, None, None),
    ],
)
def test_damage_is_labelled_beside_that_of_the_edits(
    kl: float | None, edits_kl: float | None, match: str | None
) -> None:
    assert damage_match(kl, edits_kl) == match


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[LM, Sae]:
    folder = tmp_path_factory.mktemp("pair")
    lm = load_lm(tiny.save_model(folder / "model"), [1])
    return lm, load_sae(tiny.save_sae(folder / "sae", layers=[1]), 1)


def measure(
    pair: tuple[LM, Sae], *edits: Edit, neutral: bool = True, **kwargs: object
) -> Evaluation:
    lm, sae = pair
    groups = [*texts(tiny.TEXTS, "odd"), *texts([text[::-1] for text in tiny.TEXTS], "even")]
    prompts = [prompt for group in groups for prompt in group.prompts[:4]]
    settings = EvaluateSettings(target=("odd",), draws=2, max_new_tokens=2, **kwargs)
    reference = ReferenceData(neutral=prompts if neutral else (), discovery=prompts)
    return evaluate(lm, [sae], edits, prompts, str.isascii, settings, reference=reference)


def test_every_control_and_draw_has_the_damage_of_the_chosen_strength(
    pair: tuple[LM, Sae],
) -> None:
    result = measure(pair, Edit("1/2", "add", 2.0), sweep=(0.5, 1.0))
    document = result.to_dict()
    rows = {row["name"]: row for row in document["conditions"]}
    kl = document["controls"]["kl_mean"]
    assert document["controls"]["at"] == "same-damage"
    assert kl == result.chosen.damage.kl_mean
    assert (rows["zero"]["matched"], rows["edits"]["matched"]) == (None, None)
    for name in ("minus", "random feature", "random direction", "difference of means, add"):
        row = rows[name]
        assert (row["matched"], row["wrecked"], row["match"]) == (True, False, "matched")
        for draw in row["each"] or [row]:
            assert draw["kl_mean"] == pytest.approx(kl, rel=0.15)
    draws = rows["random direction"]["each"]
    assert rows["difference of means, add"]["strength"] != 1.0
    assert rows["random direction"]["strength"] == pytest.approx(
        np.mean([draw["strength"] for draw in draws]), rel=0.01
    )
    titles = set(document["replies"][0]["by"])
    assert {f"random direction x{one['strength']:g} ({one['of']})" for one in draws} <= titles


def test_same_strength_keeps_the_strength_of_the_edits(pair: tuple[LM, Sae]) -> None:
    result = measure(pair, Edit("1/2", "add", 2.0), controls="same-strength")
    rows = {row.name: row for row in result.arms}
    assert result.to_dict()["controls"]["at"] == "same-strength"
    assert {rows[name].strength for name in ("random feature", "random direction")} == {1.0}
    for arm in result.arms[3:]:
        assert arm.match == damage_match(arm.kl_mean, result.chosen.kl_mean)


def test_without_damage_to_match_controls_run_at_the_strength_of_the_edits(
    pair: tuple[LM, Sae],
) -> None:
    for edit, neutral, why in (
        (Edit("1/2", "add", 2.0), False, "there is no neutral text to measure damage on"),
        (Edit("1/2", "add", 1e-6), True, "the edits leave neutral text as it is (KL"),
    ):
        result = measure(pair, edit, neutral=neutral)
        assert result.to_dict()["controls"]["at"] == "same-strength"
        [line] = [line for line in result.controls_left_out if "damage" in line]
        assert why in line
        assert line.endswith("so they run at the edits' strength")
        assert {arm.strength for arm in result.arms if arm.name.startswith("random")} == {1.0}


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        ({"repetition": 0.4}, "wrecked"),
        ({"ended": 0.6}, "wrecked"),
        ({"language_flip": 0.4}, "wrecked"),
        ({"scored": 60, "unscored": 40}, "wrecked"),
        ({"scored": 80, "empty": 20}, "matched"),
    ],
)
def test_broken_replies_wreck_a_control_at_any_damage(
    broken: dict[str, object], match: str
) -> None:
    edits, control = row("edits", 0.0), row("minus", 0.0, **broken)
    [result] = control_rows(Baseline(row("none", 1.0)), edits, [Arm("minus", 1.0)], [control])
    assert result.match == match
    [result] = control_rows(Baseline(row("none", 1.0)), control, [Arm("minus", 1.0)], [control])
    assert result.match == "matched"


def test_wrecked_draws_are_a_row_of_their_own() -> None:
    arms = [Arm("random direction", float(n), draw=f"seed {n}") for n in range(1, 4)]
    results = [
        row(arm.name, rate, strength=arm.strength, damage=damage_of(kl))
        for arm, rate, kl in zip(arms, (0.9, 0.0, 0.7), (0.011, 0.9, 0.009), strict=True)
    ]
    zero = row("zero", 1.0, damage=damage_of(0.0))
    rows = control_rows(
        Baseline(row("none", 1.0)), row("edits", 0.0), [Arm("zero"), *arms], [zero, *results]
    )
    assert [(one.name, one.draws, one.match) for one in rows] == [
        ("zero", 1, None),
        ("random direction", 2, "matched"),
        ("random direction", 1, "wrecked"),
    ]
    assert (rows[1].behaviour_rate, rows[1].strength) == (pytest.approx(0.8), 2.0)
    assert [draw["match"] for draw in rows[1].each] == ["matched", "matched"]
