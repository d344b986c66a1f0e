"""Which of the detected features to edit: those that change the behaviour, as few as will do.

Features and strengths are selected on one half of the discovery prompts and reported on the other.
Held-out prompts are not read, so an evaluation can use them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from saescope.analysis.detection import DetectedFeature, Detection
from saescope.control.about import about_means
from saescope.control.edits import Edit
from saescope.control.evaluation.function_judge import JudgeFunction, as_judge
from saescope.control.evaluation.judge import Judge, describe_judge
from saescope.control.evaluation.judge_check import check_judge
from saescope.control.evaluation.output_score import OutputScore, output_scores
from saescope.control.evaluation.reference_means import with_means
from saescope.control.evaluation.runner import ArmRunner, Progress, ReplyCounter, neutral_texts
from saescope.control.evaluation.screening import n_kept, screened
from saescope.control.evaluation.selection import Candidate, Selection, Step
from saescope.control.evaluation.settings import ReferenceData, SelectSettings
from saescope.control.evaluation.trials import Trial, Trials
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.engine.tokens import prompt_ids
from saescope.errors import PromptError
from saescope.sources.catalog import Feature
from saescope.sources.prompts import Prompt
from saescope.sources.splits import split_prompts
from saescope.store.resume_cache import ResumeCache
from saescope.store.runs import Run

Prepare = Callable[[Prompt], Prompt]
Tries = Mapping[Feature, Sequence[Edit]]
"Edits to try, by feature."


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

    One pass per edit measures how much it changes the first token of replies. The half of the
    candidates (at least 4) that change it most is tried alone at every strength, the others at one;
    then the best set so far with each other one of that half, as long as the effect grows. To
    suppress, an effect counts as far as answers are right, where right ones are known; of equal
    effects, less KL wins. `prepare` maps a prompt of the run to the one to reply to. Edits in
    `cache` are not tried again. Raises PromptError if nothing was detected or prompts are too few.

    >>> import tempfile
    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", layers=[1])
    >>> saes = [ss.load_sae("saescope-tiny-sae", 1, decoder=True)]
    >>> sets = [*ss.texts([f"{noun}の" for noun in "山川丘村海空森町家島"], "japanese"),
    ...         *ss.texts([f"The {n}" for n in range(10)], "english")]
    >>> settings = ss.SelectSettings(candidates=2, strengths=(-2.0,), max_new_tokens=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = ss.extract(lm, saes, sets, f"{folder}/run")
    ...     detection = ss.detect(run, "japanese")
    ...     selection = ss.select(lm, saes, run, detection, str.isalpha, settings)
    >>> len(selection.candidates)
    2
    """
    settings, judge = settings or SelectSettings(), as_judge(judge)
    settings.check()
    settings = settings.sampled
    detected = _best_detectors(detection, settings.candidates)
    edited_layers = {one.feature.layer for one in detected if settings.edit_op == "project"}
    reference = with_means(lm, edited_layers, reference or ReferenceData())
    parts = _discovery_parts(run, detection, settings).prepared(prepare)
    neutral = neutral_texts(lm, reference.neutral, [detection.target])[: settings.prompts]
    cache = ResumeCache() if cache is None else cache
    counter = ReplyCounter(progress, _planned_replies(parts, settings, len(detected)))
    runner = ArmRunner(lm, saes, parts.choosing, neutral, settings, cache, counter)
    choosing = Trials.start(runner, judge, reference)
    judging = Trials.start(replace(runner, prompts=parts.judging), judge, reference)
    return _select(run, detection, detected, choosing, judging, reference)


def _planned_replies(parts: "_Parts", settings: SelectSettings, n_detected: int) -> int:
    """How many replies are written if one feature will do."""
    n_all_strengths = n_kept(n_detected)
    n_trials = len(settings.edit_strengths) * n_all_strengths + n_detected - n_all_strengths
    return (n_trials + 1) * len(parts.choosing) + 2 * len(parts.judging)


def _select(
    run: Run,
    detection: Detection,
    detected: Sequence[DetectedFeature],
    choosing: Trials,
    judging: Trials,
    reference: ReferenceData,
) -> Selection:
    """Tries the detected features alone, then the greedy set on both parts."""
    if choosing.baseline.unedited.behaviour_rate is None:
        unfinished = choosing.baseline.unedited.unfinished
        why = f" ({unfinished} end inside their thinking)" if unfinished else ""
        raise PromptError(f"no reply could be judged{why}: nothing to choose by")
    settings = choosing.settings
    strongest = _strongest_acts(run, detected, detection.target)
    tries = {
        feature: list(about_means(_edits(feature, act, settings), reference.means or {}))
        for feature, act in strongest.items()
    }
    tries, kept = screened(choosing.measurements.runner, tries)
    singles = _best_singles(choosing, tries)
    further = {feature: edits for feature, edits in tries.items() if feature in kept}
    outputs = _output_scores(choosing.measurements.runner, strongest)
    return Selection(
        target=detection.target,
        behaviour=describe_judge(choosing.measurements.judge),
        settings=settings,
        candidates=_candidates(detected, outputs, singles),
        unedited=Step((), choosing.baseline.unedited, judging.baseline.unedited),
        steps=_steps(choosing, judging, further, singles),
        n_chosen_on=len(choosing.prompts),
        n_judged_on=len(judging.prompts),
        judge_error=check_judge(choosing.measurements.judge, reference.known_replies),
    )


def _best_detectors(detection: Detection, n: int) -> list[DetectedFeature]:
    """The n best detectors, best first; raises PromptError if there are none."""

    def demerit(feature: DetectedFeature) -> tuple[float, float]:
        return feature.prompt_other_rate - feature.prompt_rate, -feature.monolinguality

    if not detection.features:
        raise PromptError(
            f"no feature passes as a detector of {detection.target}: lower min_rate, raise "
            "max_other, or pass last=N to count the last positions only"
        )
    return sorted(detection.features, key=demerit)[:n]


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
    choosing: list[Prompt] = []
    judging: list[Prompt] = []
    for prompt, half in zip(discovery, halves, strict=True):
        part = choosing if half == "discovery" else judging
        part.append(prompt)
    if not choosing or not judging:
        raise PromptError(
            f"{', '.join(sets)}: {len(discovery)} discovery prompts are too few to choose and to "
            "judge on"
        )
    return _Parts(choosing[: settings.prompts], judging[: settings.prompts])


def _strongest_acts(
    run: Run, detected: Sequence[DetectedFeature], target: str
) -> dict[Feature, float]:
    """Every feature's largest activation on the target's prompts, 1 if it has none."""
    in_target = np.array([prompt.set == target for prompt in run.prompts])
    tokens = in_target[run.token_prompt] & (run.token_pos > 0)
    strongest = {}
    for one in detected:
        acts = run.features(one.feature.layer).acts_of(one.feature.id)
        strongest[one.feature] = float(acts[tokens].max(initial=0.0)) or 1.0
    return strongest


def _edits(feature: Feature, strongest: float, settings: SelectSettings) -> list[Edit]:
    """The feature's edit at every strength."""
    op = settings.edit_op
    unit = strongest if op == "add" else 1.0
    return [Edit(feature, op, strength * unit) for strength in settings.edit_strengths]


def _best_singles(trials: Trials, tries: Tries) -> dict[Feature, Trial]:
    """Every candidate alone, at its best strength."""
    best: dict[Feature, Trial] = {}
    for trial in trials.run([(edit,) for edits in tries.values() for edit in edits]):
        feature = trial.edits[0].target_feature
        if feature not in best or trial.merit > best[feature].merit:
            best[feature] = trial
    return best


def _output_scores(
    runner: ArmRunner, strongest: Mapping[Feature, float]
) -> dict[Feature, OutputScore]:
    """The features' output scores on the runner's prompts."""
    thinking = runner.settings.thinking
    rows = [prompt_ids(runner.lm, prompt, thinking=thinking) for prompt in runner.prompts]
    return output_scores(runner.lm, runner.saes, strongest, rows)


def _candidates(
    detected: Sequence[DetectedFeature],
    outputs: Mapping[Feature, OutputScore],
    singles: Mapping[Feature, Trial],
) -> list[Candidate]:
    """Candidates by effect, with their ranks as detectors and by output score."""
    by_output = sorted(outputs, key=lambda feature: -outputs[feature].score)
    by_effect = sorted(singles, key=lambda feature: singles[feature].merit, reverse=True)
    output_ranks = {feature: rank for rank, feature in enumerate(by_output, 1)}
    effect_ranks = {feature: rank for rank, feature in enumerate(by_effect, 1)}
    candidates = []
    for detect_rank, one in enumerate(detected, 1):
        trial = singles[one.feature]
        candidate = Candidate(
            feature=one.feature,
            detected=one,
            detect_rank=detect_rank,
            output=outputs[one.feature],
            output_rank=output_ranks[one.feature],
            strength=trial.edits[0].amount,
            result=trial.result,
            effect=trial.effect,
            effect_rank=effect_ranks[one.feature],
        )
        candidates.append(candidate)
    return sorted(candidates, key=lambda candidate: candidate.effect_rank)


def _steps(
    choosing: Trials, judging: Trials, tries: Tries, singles: Mapping[Feature, Trial]
) -> list[Step]:
    """The greedy set step by step, and what every step does on the other prompts."""
    greedy = _greedy(choosing, tries, singles)
    judged = judging.run([trial.edits for trial in greedy])
    return [
        Step(trial.edits, trial.result, other.result)
        for trial, other in zip(greedy, judged, strict=True)
    ]


def _greedy(trials: Trials, tries: Tries, singles: Mapping[Feature, Trial]) -> list[Trial]:
    """The best set of one feature, of two, …, as long as a further feature has a larger effect."""
    best = max(singles.values(), key=lambda trial: trial.merit)
    if best.effect <= 0:
        return []
    steps = [best]
    while len(steps) < trials.settings.max_features and best.effect < 1:
        extended = trials.run(_extended(best.edits, tries))
        if not extended:
            break
        next_best = max(extended, key=lambda trial: trial.merit)
        if next_best.gain <= best.gain:
            break
        best = next_best
        steps.append(best)
    return steps


def _extended(edits: tuple[Edit, ...], tries: Tries) -> list[tuple[Edit, ...]]:
    """The edits with each edit of every other feature."""
    features = {edit.target_feature for edit in edits}
    extended = []
    for feature, further in tries.items():
        if feature not in features:
            extended += [(*edits, edit) for edit in further]
    return extended
