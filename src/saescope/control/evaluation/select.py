"""Which of the detected features to edit: those whose edits change the behaviour, as few as will do.

Features and strengths are selected on one half of the discovery prompts and reported on the other.
Held-out prompts are not read, so an evaluation can use them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from saescope.analysis.detection import DetectedFeature, Detection
from saescope.control.edits import Edit
from saescope.control.evaluation.arm_results import ArmResult, EvalSet
from saescope.control.evaluation.arms import Arm
from saescope.control.evaluation.behaviour import LanguageJudge
from saescope.control.evaluation.effects import Baseline
from saescope.control.evaluation.function_judge import JudgeFunction, as_judge
from saescope.control.evaluation.judge import Judge, describe_judge
from saescope.control.evaluation.output_score import OutputScore, output_scores
from saescope.control.evaluation.runner import (
    ArmRunner,
    Measurements,
    Progress,
    counter,
    neutral_texts,
)
from saescope.control.evaluation.selection import Candidate, Selection, Step
from saescope.control.evaluation.settings import ReferenceData, SelectSettings
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.engine.tokens import prompt_ids
from saescope.errors import PromptError
from saescope.sources.catalog import Feature
from saescope.sources.prompts import Prompt, split_prompts
from saescope.store.resume_cache import ResumeCache
from saescope.store.runs import Run

Prepare = Callable[[Prompt], Prompt]


def select(
    lm: LM,
    saes: Sequence[Sae],
    run: Run,
    detection: Detection,
    judge: Judge | JudgeFunction,
    settings: SelectSettings | None = None,
    *,
    reference: ReferenceData | None = None,
    prepare: Prepare | None = None,
    cache: ResumeCache | None = None,
    progress: Progress | None = None,
) -> Selection:
    """The detected features whose edits change the behaviour, as few as will do.

    Each candidate is tried alone at every strength; then the best set so far with each other
    candidate, as long as that has a larger effect. Of equal effects the one with more right answers
    is taken, then the one with less KL on neutral text. `prepare` maps a prompt of the run to the
    one that is replied to, such as its beginning. Edits in `cache`, from an interrupted selection,
    are not run again. Raises PromptError if nothing was detected or there are too few prompts.
    """
    settings = settings or SelectSettings()
    settings.check()
    reference = reference or ReferenceData()
    judge = as_judge(judge)
    detected = _best_detectors(detection, settings.candidates)
    parts = _discovery_parts(run, detection, settings).prepared(prepare)
    n_arms = 2 * len(settings.strengths) * len(detected) + 2 + settings.max_features
    runner = ArmRunner(
        lm,
        saes,
        parts.choosing,
        neutral_texts(lm, reference.neutral, [detection.target])[: settings.prompts],
        settings.max_new_tokens,
        settings.thinking,
        ResumeCache() if cache is None else cache,
        counter(progress, n_arms),
    )
    direction = -1.0 if settings.goal == "suppress" else 1.0
    choosing = _measured_part(runner, judge, reference, direction)
    judging = _measured_part(replace(runner, prompts=parts.judging), judge, reference, direction)
    if choosing.baseline.unedited.behaviour_rate is None:
        raise PromptError("no reply could be judged: nothing to choose by")
    strongest = {one.feature: _strongest(run, one.feature, detection.target) for one in detected}
    rows = [prompt_ids(lm, prompt, thinking=settings.thinking) for prompt in parts.choosing]
    outputs = output_scores(lm, saes, strongest, rows)
    tries = {feature: _edits(feature, act, settings) for feature, act in strongest.items()}
    singles = _best_singles(choosing, tries)
    greedy = _greedy(choosing, tries, singles, settings.max_features)
    judged = judging.measure([trial.edits for trial in greedy])
    return Selection(
        target=detection.target,
        behaviour=describe_judge(judge),
        settings=settings,
        candidates=_candidates(choosing, detected, outputs, singles),
        unedited=Step((), choosing.baseline.unedited, judging.baseline.unedited),
        steps=[
            Step(trial.edits, trial.result, other.result)
            for trial, other in zip(greedy, judged, strict=True)
        ],
        n_chosen_on=len(parts.choosing),
        n_judged_on=len(parts.judging),
    )


def _best_detectors(detection: Detection, n: int) -> list[DetectedFeature]:
    """The n best detectors, best first; raises PromptError if there are none."""

    def demerit(feature: DetectedFeature) -> tuple[float, float]:
        return feature.prompt_other_rate - feature.prompt_rate, -feature.monolinguality

    detected = sorted(detection.features, key=demerit)
    if not detected:
        raise PromptError(
            f"no feature passes as a detector of {detection.target}: lower min_rate or raise "
            "max_other, or detect at the last positions only"
        )
    return detected[:n]


@dataclass(frozen=True)
class _Parts:
    """Discovery prompts to choose edits on, and others to judge them on."""

    choosing: list[Prompt]
    judging: list[Prompt]

    def prepared(self, prepare: Prepare | None) -> "_Parts":
        if prepare is None:
            return self
        return _Parts(list(map(prepare, self.choosing)), list(map(prepare, self.judging)))


def _discovery_parts(run: Run, detection: Detection, settings: SelectSettings) -> _Parts:
    """Halves of the discovery prompts: the target's to suppress, the other sets' to amplify."""
    sets = [detection.target] if settings.goal == "suppress" else detection.against
    parts = split_prompts(run.prompts, seed=detection.settings.seed)
    discovery = [
        replace(prompt, split=None)
        for prompt, part in zip(run.prompts, parts, strict=True)
        if part == "discovery" and prompt.set in sets
    ]
    halves = split_prompts(discovery, share=0.5, seed=settings.seed + 1)
    choosing = [p for p, half in zip(discovery, halves, strict=True) if half == "discovery"]
    judging = [p for p, half in zip(discovery, halves, strict=True) if half == "holdout"]
    if not choosing or not judging:
        raise PromptError(
            f"{', '.join(sets)}: {len(discovery)} discovery prompts are too few to choose and to "
            "judge on"
        )
    return _Parts(choosing[: settings.prompts], judging[: settings.prompts])


def _strongest(run: Run, feature: Feature, target: str) -> float:
    """The feature's largest activation on the target's prompts, 1 if it has none."""
    acts = run.features(feature.layer).acts_of(feature.id)
    in_target = np.array([prompt.set == target for prompt in run.prompts])[run.token_prompt]
    return float(acts[in_target & (run.token_pos > 0)].max(initial=0.0)) or 1.0


def _edits(feature: Feature, strongest: float, settings: SelectSettings) -> list[Edit]:
    """The feature's edit at every strength."""
    unit = strongest if settings.op == "add" else 1.0
    return [Edit(feature, settings.op, strength * unit) for strength in settings.strengths]


class _Merit(NamedTuple):
    """Compared in this order; larger is better."""

    clean: bool
    effect: float
    right_rate: float
    less_kl: float


@dataclass(frozen=True)
class _Trial:
    """Edits, and what they did."""

    edits: tuple[Edit, ...]
    result: ArmResult


@dataclass(frozen=True)
class _MeasuredPart:
    """One part's prompts, on which sets of edits are measured."""

    measurements: Measurements
    baseline: Baseline
    direction: float

    def measure(self, edit_sets: Sequence[tuple[Edit, ...]]) -> list[_Trial]:
        """Every set of edits, tried."""
        arms = [Arm("edits", edits=edits, draw=f"#{n}") for n, edits in enumerate(edit_sets)]
        results = self.measurements.add_each(arms) if arms else []
        return [_Trial(edits, one) for edits, one in zip(edit_sets, results, strict=True)]

    def effect(self, trial: _Trial) -> float:
        """Share of the largest possible change towards the goal."""
        return self.baseline.effect(trial.result, self.direction)

    def merit(self, trial: _Trial) -> _Merit:
        """A clear effect without losses, then the effect, right answers, and the least KL."""
        result = trial.result
        clean = self.baseline.is_clear(result) and not self.baseline.losses(result)
        kl = result.damage.kl_mean if result.damage else 0.0
        return _Merit(clean, self.effect(trial), result.right_rate or 0.0, -kl)


def _measured_part(
    runner: ArmRunner, judge: Judge, reference: ReferenceData, direction: float
) -> _MeasuredPart:
    sets = [prompt.set for prompt in runner.prompts]
    eval_set = EvalSet(runner.prompts, sets, reference.answers or {})
    measurements = Measurements(runner, eval_set, judge)
    [unedited] = measurements.add([Arm("none")])
    baseline = Baseline(unedited, isinstance(judge, LanguageJudge))
    return _MeasuredPart(measurements, baseline, direction)


Tries = dict[Feature, list[Edit]]


def _best_singles(part: _MeasuredPart, tries: Tries) -> dict[Feature, _Trial]:
    """Every candidate alone, at its best strength."""
    trials = part.measure([(edit,) for edits in tries.values() for edit in edits])
    by_feature: dict[Feature, list[_Trial]] = {feature: [] for feature in tries}
    for trial in trials:
        by_feature[trial.edits[0].target_feature].append(trial)
    return {feature: max(of, key=part.merit) for feature, of in by_feature.items()}


def _greedy(
    part: _MeasuredPart, tries: Tries, singles: dict[Feature, _Trial], max_features: int
) -> list[_Trial]:
    """The best set of one feature, of two, …, as long as another feature has a larger effect."""
    best = max(singles.values(), key=part.merit)
    if part.effect(best) <= 0:
        return []
    steps = [best]
    while len(steps) < max_features and part.effect(best) < 1:
        trials = part.measure(_extended(best.edits, tries))
        if not trials:
            break
        extended = max(trials, key=part.merit)
        if part.merit(extended)[:2] <= part.merit(best)[:2]:  # clean and effect
            break
        best = extended
        steps.append(best)
    return steps


def _extended(edits: tuple[Edit, ...], tries: Tries) -> list[tuple[Edit, ...]]:
    """The edits with each edit of every other feature."""
    features = {edit.target_feature for edit in edits}
    others = [edit for feature, of in tries.items() if feature not in features for edit in of]
    return [(*edits, edit) for edit in others]


def _candidates(
    part: _MeasuredPart,
    detected: Sequence[DetectedFeature],
    outputs: dict[Feature, OutputScore],
    singles: dict[Feature, _Trial],
) -> list[Candidate]:
    """Candidates by effect, with their ranks as detectors and by output score."""
    by_output = sorted(outputs, key=lambda feature: -outputs[feature].score)
    by_effect = sorted(singles, key=lambda feature: part.merit(singles[feature]), reverse=True)
    detect_ranks = {one.feature: rank for rank, one in enumerate(detected, 1)}
    candidates = []
    for effect_rank, feature in enumerate(by_effect, 1):
        trial, detect_rank = singles[feature], detect_ranks[feature]
        candidates.append(
            Candidate(
                feature=feature,
                detected=detected[detect_rank - 1],
                detect_rank=detect_rank,
                output=outputs[feature],
                output_rank=by_output.index(feature) + 1,
                strength=trial.edits[0].amount,
                result=trial.result,
                effect=part.effect(trial),
                effect_rank=effect_rank,
            )
        )
    return candidates
