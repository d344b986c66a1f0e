"""Before and after: what edits do to a behaviour, and to everything else, beside controls."""

from collections.abc import Sequence
from dataclasses import replace

from saescope.control.about import with_spreads
from saescope.control.edits import Edit
from saescope.control.evaluation.arm_results import ArmResult
from saescope.control.evaluation.arms import Arm, times
from saescope.control.evaluation.behaviour import LanguageJudge
from saescope.control.evaluation.control_rows import control_rows
from saescope.control.evaluation.controls import (
    IN_FULL,
    Controls,
    draw_features,
    mean_directions,
)
from saescope.control.evaluation.effects import Baseline, kl_text
from saescope.control.evaluation.evaluation import Evaluation
from saescope.control.evaluation.evidence import Evidence, Finding, choose
from saescope.control.evaluation.function_judge import JudgeFunction, as_judge
from saescope.control.evaluation.judge import Judge, describe_judge
from saescope.control.evaluation.judge_check import check_judge, error_sentence
from saescope.control.evaluation.matching import LEAST_KL, at_matched_damage
from saescope.control.evaluation.measurements import Measurements
from saescope.control.evaluation.metrics import mean_known
from saescope.control.evaluation.reference_means import with_means
from saescope.control.evaluation.runner import ArmRunner, Progress, ReplyCounter, neutral_texts
from saescope.control.evaluation.scoring import EvalSet
from saescope.control.evaluation.settings import (
    QUICK_OTHER_PROMPTS,
    QUICK_TARGET_PROMPTS,
    QUICK_TEXTS,
    EvaluateSettings,
    ReferenceData,
)
from saescope.control.evaluation.verdict import verdict
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.errors import PromptError
from saescope.sources.prompts import Prompt
from saescope.sources.splits import spread
from saescope.store.resume_cache import ResumeCache


def evaluate(
    lm: LM,
    saes: Sequence[Sae],
    edits: Sequence[Edit],
    prompts: Sequence[Prompt],
    judge: Judge | JudgeFunction,
    settings: EvaluateSettings | None = None,
    *,
    reference: ReferenceData | None = None,
    cache: ResumeCache | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """How often a behaviour shows in greedy replies without edits, with them, and under controls.

    The edits run at every strength of the sweep. Every control then runs at the strength where it
    does as much damage to neutral text as the edits do at the strength with the best effect. An
    effect counts for the edits only if no control has it too. `reference` has texts to measure
    damage on, right answers, and discovery prompts. Arms in `cache`, from an interrupted
    evaluation, are not run again. Raises PromptError for sets that do not exist and settings that
    cannot be used.

    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", layers=[1])
    >>> sae = ss.load_sae("saescope-tiny-sae", 1, decoder=True)
    >>> prompts, judge = ss.texts(["丘が", "家は"])[0].prompts, ss.judges.LanguageJudge("ja")
    >>> settings = ss.EvaluateSettings(draws=0, max_new_tokens=6)
    >>> result = ss.evaluate(lm, [sae], [ss.Edit("1/1")], prompts, judge, settings)
    >>> [(arm.name, arm.behaviour_rate) for arm in result.arms]
    [('none', 1.0), ('edits', 1.0), ('zero', 1.0), ('minus', 1.0)]
    """
    settings = settings or EvaluateSettings()
    settings.check()
    settings, layers = settings.sampled, {edit.layer for edit in edits}
    reference = with_means(lm, layers, reference or ReferenceData(), edits)
    edits = with_spreads(edits, reference.means or {})
    judge = as_judge(judge)
    target = _target_sets(prompts, settings)
    texts = reference.neutral
    if settings.quick:
        prompts, texts = quick_prompts(prompts, target), quick_texts(texts, target)
    arms = _edit_arms(edits, settings)
    controls = _controls(lm, saes, edits, prompts, settings, reference)
    n_arms = len(arms) + len(controls.at(1.0, removes=True))
    neutral = neutral_texts(lm, texts, target)
    cache = ResumeCache() if cache is None else cache
    counter = ReplyCounter(progress, n_arms * len(prompts))
    runner = ArmRunner(lm, saes, prompts, neutral, settings, cache, counter)
    measurements = Measurements(runner, EvalSet(prompts, target, reference.answers or {}), judge)
    return _compare(measurements, arms, controls, reference)


def _compare(
    measurements: Measurements, arms: Sequence[Arm], controls: Controls, reference: ReferenceData
) -> Evaluation:
    """Measures the arms, the first of them unedited, then the controls of the best strength."""
    judge, target = measurements.judge, list(measurements.eval_set.target)
    unedited, *tried = measurements.add(arms)
    baseline = Baseline(unedited, isinstance(judge, LanguageJudge), target)
    best = choose(baseline, tried)
    control_arms = _control_arms(measurements.runner, controls, baseline, best, reference)
    results = measurements.add(control_arms)
    rows = control_rows(baseline, best, control_arms, results)
    judge_error = check_judge(judge, reference.known_replies)
    evidence = Evidence(baseline, tried, rows, _count(controls.edits))
    settings = measurements.runner.settings
    assert isinstance(settings, EvaluateSettings)
    return Evaluation(
        behaviour=describe_judge(judge),
        target=target,
        arms=[unedited, *tried, *rows],
        chosen=evidence.chosen,
        findings=[*verdict(evidence), Finding("judge error", error_sentence(judge_error))],
        replies=measurements.replies,
        labels=measurements.labels,
        judge_error=judge_error,
        prompts=list(measurements.eval_set.prompts),
        neutral_tokens=sum(len(text.ids) for text in measurements.runner.neutral),
        controls_left_out=_controls_left_out(controls, best, settings),
        quick=settings.quick,
        controls=settings.controls if _can_match(best) else "same-strength",
    )


def _target_sets(prompts: Sequence[Prompt], settings: EvaluateSettings) -> list[str]:
    """The sets that show the behaviour; raises PromptError for a set that does not exist."""
    sets = list(dict.fromkeys(prompt.set for prompt in prompts))
    for name in settings.target or ():
        if name not in sets:
            raise PromptError(f"there is no set {name!r}: the sets are {', '.join(sets)}")
    return list(settings.target or sets)


def quick_prompts(prompts: Sequence[Prompt], target: Sequence[str]) -> list[Prompt]:
    """A sample of every set, larger of the target sets."""
    by_set: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_set.setdefault(prompt.set, []).append(prompt)
    sample: list[Prompt] = []
    for name, members in by_set.items():
        n = QUICK_TARGET_PROMPTS if name in target else QUICK_OTHER_PROMPTS
        sample += spread(members, n)
    return sample


def quick_texts(neutral: Sequence[Prompt], target: Sequence[str]) -> list[Prompt]:
    """A sample of the neutral texts."""
    return spread([text for text in neutral if text.set not in target], QUICK_TEXTS)


def _edit_arms(edits: Sequence[Edit], settings: EvaluateSettings) -> list[Arm]:
    """No edits, then the edits at every strength; raises PromptError for multiples of a clamp."""
    if len(settings.sweep) > 1 and all(edit.op in ("clamp", "readout_clamp") for edit in edits):
        raise PromptError("a clamp has a target and no multiples of it: leave sweep= out")
    edited = [Arm("edits", strength, times(edits, strength)) for strength in settings.strengths]
    return [Arm("none"), *edited]


def _controls(
    lm: LM,
    saes: Sequence[Sae],
    edits: Sequence[Edit],
    prompts: Sequence[Prompt],
    settings: EvaluateSettings,
    reference: ReferenceData,
) -> Controls:
    target = _target_sets(prompts, settings)
    edited_layers = {edit.layer for edit in edits}
    edited_saes = [sae for sae in saes if sae.spec.layer in edited_layers]
    means = mean_directions(lm, edited_saes, reference.discovery, target, settings.thinking)
    return Controls(
        edits=tuple(edits),
        random_features=draw_features(lm, saes, edits, prompts, settings),
        direction_seeds=range(settings.seed, settings.seed + settings.draws),
        means=means,
        instruction=settings.instruction,
        neutral_means=reference.means or {},
    )


def _control_arms(
    runner: ArmRunner,
    controls: Controls,
    baseline: Baseline,
    chosen: ArmResult,
    reference: ReferenceData,
) -> list[Arm]:
    """The controls, at the damage or at the strength of the edits.

    Where the edits' effect is not whole, the difference of means also runs at full strength: if
    that has the effect, the layer can carry it.
    """
    assert chosen.strength is not None
    removes = _lead_away(baseline, chosen, reference.discovery)
    at_strength = controls.at(chosen.strength, removes=removes)
    assert isinstance(runner.settings, EvaluateSettings)
    if runner.settings.controls == "same-strength" or not _can_match(chosen):
        return [control.arm for control in at_strength]
    assert chosen.kl_mean is not None
    arms = at_matched_damage(at_strength, chosen.kl_mean, runner.damages)
    if not Evidence(baseline, [chosen], [], "").is_whole:
        titles = {arm.title for arm in arms}
        full = [control.arm for control in controls.of_means(removes=removes)]
        arms += [
            replace(arm, name=f"{arm.name}{IN_FULL}") for arm in full if arm.title not in titles
        ]
    return arms


def _can_match(chosen: ArmResult) -> bool:
    """Whether the edits do damage that controls can be matched to."""
    return chosen.kl_mean is not None and chosen.kl_mean > LEAST_KL


def _lead_away(baseline: Baseline, chosen: ArmResult, discovery: Sequence[Prompt]) -> bool:
    """Whether the edits lead away from the target sets' mean residual.

    They do if they suppress what the target sets show more than the others, or amplify what the
    others show more.
    """
    other_sets = {prompt.set for prompt in discovery} - set(baseline.target)
    sets = baseline.unedited.sets
    other_rate = mean_known([sets[name].behaviour_rate for name in other_sets if name in sets])
    target_shows_more = baseline.rate >= (other_rate or 0.0)
    suppresses = baseline.change(chosen) <= 0
    return suppresses == target_shows_more


def _count(edits: Sequence[Edit]) -> str:
    """How many features and directions are edited, in words."""
    features = {edit.name for edit in edits if edit.feature is not None}
    n_directions = sum(edit.feature is None for edit in edits)
    counts = {"feature": len(features), "direction": n_directions}
    return " and ".join(_plural(n, noun) for noun, n in counts.items() if n)


def _plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _controls_left_out(
    controls: Controls, chosen: ArmResult, settings: EvaluateSettings
) -> list[str]:
    """Controls that were not measured, and what they need."""
    left_out = []
    if settings.controls == "same-damage" and not _can_match(chosen):
        why = "there is no neutral text to measure damage on"
        if chosen.kl_mean is not None:
            why = f"the edits leave neutral text as it is (KL {kl_text(chosen.kl_mean)})"
        left_out.append(
            f"controls at the damage of the edits: {why}, so they run at the edits' strength"
        )
    if not controls.means:
        left_out.append(
            "difference of means: it needs discovery prompts of sets that show the behaviour "
            "and of others"
        )
    if not controls.instruction:
        left_out.append("prompt only: it needs an instruction")
    if not controls.direction_seeds:
        left_out.append("random feature, random direction: draws is 0")
    return left_out
