"""Which features to edit: candidates of a detector, ranked by what changing them does, and the fewest that do it.

A feature's rank as a detector says little of its effect, so both stand side by side, with the output score between
them. Features and strengths are chosen on one part of the discovery prompts and told of the other; prompts that are
held out are not looked at, and stay good for an evaluation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np

from saescope.analysis.detection import DetectedFeature, Detection
from saescope.control.edits import Edit, Op
from saescope.control.evaluation.behaviour import InLanguage, Judge, ReplyJudge, describe
from saescope.control.evaluation.bench import Bench, Progress, Rows, counting, neutral_rows
from saescope.control.evaluation.conditions import Asked, Condition
from saescope.control.evaluation.output_score import OutputScore, output_scores
from saescope.control.evaluation.verdict import Case
from saescope.control.evaluation.ways import Way
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.engine.tokens import prompt_ids
from saescope.errors import PromptError
from saescope.sources.catalog import Feature
from saescope.sources.prompts import Prompt, split_prompts
from saescope.store.resume_cache import ResumeCache
from saescope.store.runs import Run
from saescope.table import Table

Goal = Literal["suppress", "amplify"]


@dataclass(frozen=True)
class SelectSettings:
    """How features are selected: most features, candidates tried, strengths, op, and the goal.

    `prompts` is how many of each part are replied to, and how many neutral texts are read. Strengths of `add` are
    multiples of the feature's largest activation on the target's prompts.
    """

    max_features: int = 5
    candidates: int = 12
    strengths: tuple[float, ...] = (-1.0, -2.0, -3.0)
    op: Op = "scale"
    goal: Goal = "suppress"
    prompts: int = 16
    max_new_tokens: int = 32
    seed: int = 0

    def check(self) -> None:
        """Raises PromptError for a value no selection can use."""
        for name in ("max_features", "candidates", "prompts", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise PromptError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be at least 1"
                )
        if not self.strengths or not all(0 < abs(s) < 1e6 for s in self.strengths):
            raise PromptError("--strengths needs numbers other than 0, such as -1,-2")


@dataclass(frozen=True)
class Candidate:
    """One feature by all three measures: as a detector, by its output score, and by what changing it does.

    `effect` is how far the behaviour's rate goes towards the goal at the best `strength`, as a share of the way.
    """

    feature: Feature
    found: DetectedFeature
    detect_rank: int
    output: OutputScore
    output_rank: int
    strength: float
    row: Condition
    effect: float
    effect_rank: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "feature": str(self.feature),
            "detect_rank": self.detect_rank,
            "prompt_rate": self.found.prompt_rate,
            "prompt_other_rate": self.found.prompt_other_rate,
            "monolinguality": self.found.monolinguality,
            "output_rank": self.output_rank,
            "output_score": self.output.score,
            "output_probability": self.output.probability,
            "output_token_rank": self.output.rank,
            "tokens": self.output.tokens,
            "effect_rank": self.effect_rank,
            "effect": self.effect,
            "strength": self.strength,
            "behaviour_rate": self.row.behaviour_rate,
            "right_rate": self.row.right_rate,
            "kl_mean": self.row.damage.kl_mean if self.row.damage else None,
        }


@dataclass(frozen=True)
class Step:
    """A set of edits of one feature more than the step before: on the prompts it was chosen on, and on the others."""

    edits: tuple[Edit, ...]
    chosen_on: Condition
    judged_on: Condition


@final
@dataclass(frozen=True)
class Selection(Table):
    """The answer to `select`: candidates by effect, the steps of the greedy set, and its edits."""

    target: str
    behaviour: dict[str, Any]
    settings: SelectSettings
    candidates: list[Candidate]
    base: tuple[Condition, Condition]
    steps: list[Step]
    prompts: tuple[int, int]

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What was chosen; nothing where no candidate does anything."""
        return self.steps[-1].edits if self.steps else ()

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope select`, but for the edits file."""
        return {
            "target": self.target,
            "behaviour": self.behaviour,
            "settings": {**vars(self.settings), "strengths": list(self.settings.strengths)},
            "candidates": [one.to_dict() for one in self.candidates],
            "prompts": {"chosen_on": self.prompts[0], "judged_on": self.prompts[1]},
            "base": {"chosen_on": self.base[0].to_dict(), "judged_on": self.base[1].to_dict()},
            "steps": [
                {"edits": [f"{e.name} {e.op} {e.amount:g}" for e in step.edits],
                 "chosen_on": step.chosen_on.to_dict(), "judged_on": step.judged_on.to_dict()}
                for step in self.steps
            ],
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """A row a candidate."""
        return [
            {k: v for k, v in one.to_dict().items() if k != "tokens"} for one in self.candidates
        ]


@dataclass
class _Search:
    """One part's prompts and what is measured on them."""

    rows: Rows
    base: Condition
    goal: Goal

    def try_all(self, sets: Sequence[tuple[Edit, ...]]) -> list[Condition]:
        """A row for every set of edits."""
        return self.rows.each(
            [Way("edits", None, edits, drawn=f"#{n}") for n, edits in enumerate(sets)]
        )

    def worth(self, row: Condition) -> tuple[bool, float, float, float]:
        """A clear effect with nothing lost first, then the effect, then right answers, then the least damage."""
        clean = self.case.clear(row) and not self.case.losses(row)
        return (
            clean,
            self.effect(row),
            row.right_rate or 0.0,
            -(row.damage.kl_mean if row.damage else 0.0),
        )

    def effect(self, row: Condition) -> float:
        """How much of the way to the goal."""
        return self.case.share(row, -1.0 if self.goal == "suppress" else 1.0)

    @property
    def case(self) -> Case:
        return Case(self.base, [], [], "", isinstance(self.rows.judge, InLanguage))


def select(
    lm: LM,
    saes: Sequence[Sae],
    run: Run,
    detection: Detection,
    judge: Judge | ReplyJudge,
    settings: SelectSettings | None = None,
    *,
    neutral: Sequence[Prompt] = (),
    answers: Mapping[str, str] | None = None,
    asked: Callable[[Prompt], Prompt] | None = None,
    thinking: bool | None = None,
    kept: ResumeCache | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Of the features that `detect` found in a run, those whose edits do what is wanted, as few as will do.

    Candidates are tried one by one at every strength; then the best set so far with each of the others, while that does
    more. Of equal effects the one with more right `answers` is taken. `asked` makes of a prompt the one that is replied
    to, such as its beginning. What is `kept` of interrupted work is not measured again. Raises PromptError where
    nothing was detected, or prompts are too few to choose on one part and judge on another.
    """
    settings = settings or SelectSettings()
    settings.check()
    found = _best_detectors(detection, settings.candidates)
    choosing, judging = (
        list(map(asked, part)) if asked else part for part in _parts(run, detection, settings)
    )
    total = len(settings.strengths) * len(found) * 2 + 2 + settings.max_features
    advance = counting(progress, total)
    kept = ResumeCache() if kept is None else kept
    plain = neutral_rows(lm, neutral, [detection.target])[: settings.prompts]

    def search(prompts: Sequence[Prompt]) -> _Search:
        bench = Bench(lm, saes, prompts, plain, settings.max_new_tokens, thinking, kept, advance)
        rows = Rows(bench, Asked(prompts, [prompt.set for prompt in prompts], answers), judge)
        [base] = rows.add([Way("none")])
        return _Search(rows, base, settings.goal)

    on, off = search(choosing), search(judging)
    if on.base.behaviour_rate is None:
        raise PromptError("no reply could be judged: nothing to choose by")
    strongest = {f.feature: _strongest(run, f.feature, detection.target) for f in found}
    outputs = output_scores(
        lm, saes, strongest, [prompt_ids(lm, p, thinking=thinking) for p in choosing]
    )
    tries = {
        f.feature: [_edit(f.feature, s, settings, strongest) for s in settings.strengths]
        for f in found
    }
    single = _alone(on, tries)
    sets = _greedy(on, tries, single, settings.max_features)
    judged = off.try_all([edits for edits, _ in sets]) if sets else []
    return Selection(
        target=detection.target,
        behaviour=describe(judge),
        settings=settings,
        candidates=_ranked(on, found, outputs, single),
        base=(on.base, off.base),
        steps=[Step(edits, row, other) for (edits, row), other in zip(sets, judged, strict=True)],
        prompts=(len(choosing), len(judging)),
    )


def _best_detectors(detection: Detection, n: int) -> list[DetectedFeature]:
    """The n best detectors, best first; raises PromptError where there is none."""
    found = sorted(
        detection.features, key=lambda f: (f.prompt_other_rate - f.prompt_rate, -f.monolinguality)
    )
    if not found:
        raise PromptError(
            f"no feature passes as a detector of {detection.target}: loosen --min-rate and --max-other, or look at the "
            "last positions alone (--last)"
        )
    return found[:n]


def _parts(
    run: Run, detection: Detection, settings: SelectSettings
) -> tuple[list[Prompt], list[Prompt]]:
    """Discovery prompts to choose on and to judge on; a behaviour that is to come is asked of the other sets."""
    names = [detection.target] if settings.goal == "suppress" else detection.against
    parts = split_prompts(run.prompts, seed=detection.settings.seed)
    found = [replace(p, split=None) for p, part in zip(run.prompts, parts, strict=True)
             if part == "discovery" and p.set in names]  # fmt: skip
    halves = split_prompts(found, share=0.5, seed=settings.seed + 1)
    choosing = [prompt for prompt, half in zip(found, halves, strict=True) if half == "discovery"]
    judging = [prompt for prompt, half in zip(found, halves, strict=True) if half == "holdout"]
    if not choosing or not judging:
        raise PromptError(
            f"{', '.join(names)}: {len(found)} discovery prompts are too few to choose and to judge on"
        )
    return choosing[: settings.prompts], judging[: settings.prompts]


def _strongest(run: Run, feature: Feature, target: str) -> float:
    """The feature's largest activation on the target's prompts."""
    acts = run.features(feature.layer).acts_of(feature.id)
    of = np.array([prompt.set == target for prompt in run.prompts])[run.token_prompt]
    return float(acts[of & (run.token_pos > 0)].max(initial=0.0)) or 1.0


def _edit(
    feature: Feature, strength: float, settings: SelectSettings, strongest: dict[Feature, float]
) -> Edit:
    amount = strength * strongest[feature] if settings.op == "add" else strength
    return Edit(feature, settings.op, amount)


Try = tuple[tuple[Edit, ...], Condition]


def _alone(on: _Search, tries: dict[Feature, list[Edit]]) -> dict[Feature, Try]:
    """Every candidate by itself at its best strength."""
    edits = [edit for each in tries.values() for edit in each]
    rows = dict(zip(edits, on.try_all([(edit,) for edit in edits]), strict=True))
    best = {
        feature: max(each, key=lambda edit: on.worth(rows[edit])) for feature, each in tries.items()
    }
    return {feature: ((edit,), rows[edit]) for feature, edit in best.items()}


def _greedy(
    on: _Search, tries: dict[Feature, list[Edit]], single: dict[Feature, Try], most: int
) -> list[Try]:
    """The best set of one feature, of two, …, while another one does more by at least one prompt."""
    steps: list[Try] = [max(single.values(), key=lambda one: on.worth(one[1]))]
    if on.effect(steps[0][1]) <= 0:
        return []
    while len(steps) < most and on.effect(steps[-1][1]) < 1:
        edits, row = steps[-1]
        taken = {edit.target_feature for edit in edits}
        more = [
            (*edits, edit)
            for feature, each in tries.items()
            if feature not in taken
            for edit in each
        ]
        if not more:
            break
        best = max(zip(more, on.try_all(more), strict=True), key=lambda one: on.worth(one[1]))
        if on.worth(best[1])[:2] <= on.worth(row)[:2]:
            break
        steps.append(best)
    return steps


def _ranked(
    on: _Search,
    found: Sequence[DetectedFeature],
    outputs: dict[Feature, OutputScore],
    single: dict[Feature, Try],
) -> list[Candidate]:
    """Candidates by effect, with their ranks by the other two measures."""
    by_output = sorted(outputs, key=lambda feature: -outputs[feature].score)
    by_effect = sorted(single, key=lambda feature: on.worth(single[feature][1]), reverse=True)
    place = {one.feature: n for n, one in enumerate(found)}
    return [
        Candidate(
            feature=feature,
            found=found[place[feature]],
            detect_rank=place[feature] + 1,
            output=outputs[feature],
            output_rank=by_output.index(feature) + 1,
            strength=single[feature][0][0].amount,
            row=single[feature][1],
            effect=on.effect(single[feature][1]),
            effect_rank=n,
        )
        for n, feature in enumerate(by_effect, 1)
    ]
