"""What results show, in words: whether edits work, why they may not, and what they cost.

The failure modes have names: capability lost, detection without control, several features needed,
another mechanism, and not specific if a control does the same. Figures alone decide.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from saescope.control.evaluation.arm_results import ArmResult
from saescope.control.evaluation.controls import MEANS
from saescope.control.evaluation.effects import Baseline, percent

WHOLE = 0.8  # share of the largest possible change from which an effect is whole
SAME = 0.5  # share of the edits' change from which a control does the same
UNSPECIFIC = ("zero", "minus", "random feature", "random direction")
Name = Literal[
    "effect",
    "nothing applied",
    "nothing scored",
    "partial",
    "detection without control",
    "several features needed",
    "another mechanism",
    "not specific",
    "some draws",
    "difference of means",
    "prompt alone",
    "capability lost",
    "unfinished",
    "judge error",
]


@dataclass(frozen=True)
class Finding:
    """One thing that the figures show: its name, and a sentence with the figures."""

    name: Name
    text: str


@dataclass(frozen=True)
class Evidence:
    """The results that a verdict rests on."""

    baseline: Baseline
    tried: Sequence[ArmResult]
    "The edits at every strength."

    controls: Sequence[ArmResult]
    edited: str
    "How many features and directions are edited, in words."

    @property
    def chosen(self) -> ArmResult:
        """The strength that a verdict is about."""
        return choose(self.baseline, self.tried)

    @property
    def means(self) -> list[ArmResult]:
        """Results of the difference of means."""
        return [arm for arm in self.controls if arm.name.startswith(MEANS)]

    @property
    def prompt_only(self) -> ArmResult | None:
        """Result of the prompt-only control."""
        return next((arm for arm in self.controls if arm.name == "prompt only"), None)


def verdict(evidence: Evidence) -> list[Finding]:
    """What may be concluded of the chosen strength."""
    chosen, unedited = evidence.chosen, evidence.baseline.unedited
    for arm, which in ((unedited, "without edits"), (chosen, "with the edits")):
        if arm.behaviour_rate is None:
            text = f"Nothing can be said: no reply {which} could be judged."
            return [Finding("nothing scored", text), *_unfinished(evidence)]
    findings = [_effect(evidence)]
    if not chosen.applied:
        text = (
            "Nothing was changed: no edited feature fired. "
            "Detection and control may lie at different sites."
        )
        return [*findings, Finding("nothing applied", text), *_unfinished(evidence)]
    findings += _reasons(evidence)
    findings += _same_as_controls(evidence)
    findings += _same_as_prompt(evidence)
    losses = evidence.baseline.losses(chosen)
    if losses:
        findings.append(Finding("capability lost", f"Capability is lost: {'; '.join(losses)}."))
    return [*findings, *_unfinished(evidence)]


def choose(baseline: Baseline, tried: Sequence[ArmResult]) -> ArmResult:
    """The best strength: a clear effect without losses, then the largest effect, then least KL."""

    def merit(arm: ArmResult) -> tuple[bool, bool, float, float]:
        clear = baseline.is_clear(arm)
        kl = arm.damage.kl_mean if arm.damage else 0.0
        return clear and not baseline.losses(arm), clear, abs(baseline.change(arm)), -kl

    return max(tried, key=merit)


def rate(arm: ArmResult) -> str:
    """The arm's rate with its interval, in percent."""
    if arm.behaviour_rate is None:
        return "unknown"
    low, high = arm.ci
    return f"{percent(arm.behaviour_rate)} ({100 * low:.0f}-{100 * high:.0f})"


def _effect(evidence: Evidence) -> Finding:
    chosen = evidence.chosen
    change = f"from {rate(evidence.baseline.unedited)} to {rate(chosen)}"
    how = f"with {evidence.edited} at {chosen.strength:g} times the strength"
    return Finding("effect", f"The behaviour goes {change} {how}.")


def _reasons(evidence: Evidence) -> list[Finding]:
    """Why an effect is not whole, as far as the difference of means can tell.

    If the effect is whole: what the difference of means does.
    """
    baseline, chosen = evidence.baseline, evidence.chosen
    direction = baseline.change(chosen)
    if not baseline.is_clear(chosen):
        text = (
            "That is no clear effect: detection without control. The features fire where the "
            "behaviour shows, and changing them does not change it."
        )
        direction = -1.0 if baseline.rate >= 0.5 else 1.0
        return [Finding("detection without control", text), _mechanism(evidence, direction, "it")]
    effect = baseline.effect(chosen, direction)
    if effect >= WHOLE:
        return _means(evidence, direction)
    partial = Finding("partial", f"The effect is partial: {percent(effect)} of the way.")
    return [partial, _mechanism(evidence, direction, "the rest")]


def _mechanism(evidence: Evidence, direction: float, missing: str) -> Finding:
    """Where the missing effect may be found: in more features of the layer, or elsewhere."""
    baseline = evidence.baseline
    if not evidence.means:
        text = (
            "Several features may be needed, or another mechanism is at work: "
            "difference of means was not measured."
        )
        return Finding("several features needed", text)

    def merit(arm: ArmResult) -> tuple[bool, float]:
        return _is_whole(baseline, arm, direction), baseline.effect(arm, direction)

    best = max(evidence.means, key=merit)
    losses = baseline.losses(best)
    harm = f", and loses capability ({'; '.join(losses)})" if losses else ""
    figures = f"({rate(best)}{harm})"
    if _is_whole(baseline, best, direction):
        text = (
            f"Several features are needed: {best.name}, at the same layer, does it whole {figures}."
        )
        return Finding("several features needed", text)
    text = (
        f"Another mechanism carries {missing}, or another layer: {best.name}, at the same layer, "
        f"does not do it either {figures}."
    )
    return Finding("another mechanism", text)


def _is_whole(baseline: Baseline, arm: ArmResult, direction: float) -> bool:
    """Whether an arm has the whole effect.

    A behaviour that disappears at a loss may have gone with everything else: that does not count.
    """
    whole = baseline.is_clear(arm) and baseline.effect(arm, direction) >= WHOLE
    return whole and (direction > 0 or not baseline.losses(arm))


def _means(evidence: Evidence, direction: float) -> list[Finding]:
    """What the difference of means does beside edits that work."""
    clauses = [_means_clause(evidence.baseline, arm, direction) for arm in evidence.means]
    if not clauses:
        return []
    text = "; ".join(clauses)
    return [Finding("difference of means", f"{text[0].upper()}{text[1:]}.")]


def _means_clause(baseline: Baseline, arm: ArmResult, direction: float) -> str:
    works = baseline.is_clear(arm) and baseline.effect(arm, direction) >= WHOLE
    does = "does it too" if works else "does not do it"
    kl = f", KL {arm.damage.kl_mean:.2g}" if arm.damage else ""
    losses = baseline.losses(arm)
    cost = f" and loses capability ({'; '.join(losses)})" if losses else ""
    return f"{arm.name}, {does} ({rate(arm)}{kl}){cost}"


def _same_as_controls(evidence: Evidence) -> Iterator[Finding]:
    """Controls that change the behaviour the same way, more than half as far.

    On average or in half of the draws, the edits are not specific; in fewer draws, that is said.
    """
    baseline = evidence.baseline
    if not baseline.is_clear(evidence.chosen):
        return
    change = baseline.change(evidence.chosen)

    def is_similar(other: float) -> bool:
        return other * change > 0 and abs(other) > SAME * abs(change)

    same, some_draws = [], []
    for control in evidence.controls:
        if control.name not in UNSPECIFIC:
            continue
        draws = _draw_changes(baseline, control)
        similar = [draw for draw in draws if is_similar(draw)]
        if 2 * len(similar) >= len(draws) or is_similar(baseline.change(control)):
            same.append(f"{control.name} ({rate(control)})")
        elif similar:
            furthest = percent(baseline.rate + max(similar, key=abs))
            count = f"{len(similar)} of {len(draws)} draws of a {control.name}"
            some_draws.append(f"{count} (to {furthest})")
    if same:
        yield Finding("not specific", f"It is not specific: {_moved(same)}.")
    if some_draws:
        text = f"Not every change of this size leaves it alone: {_moved(some_draws)}."
        yield Finding("some draws", text)


def _moved(controls: Sequence[str]) -> str:
    return f"{' and '.join(controls)} moved it more than half as far"


def _draw_changes(baseline: Baseline, control: ArmResult) -> list[float]:
    """How far each draw of a control changes the rate; 0 if its rate is unknown."""
    if not control.each:
        return [baseline.change(control)]
    rates = [draw.get("behaviour_rate") for draw in control.each]
    return [0.0 if rate is None else rate - baseline.rate for rate in rates]


def _same_as_prompt(evidence: Evidence) -> Iterator[Finding]:
    """Whether an instruction in the prompt has the whole effect."""
    baseline, prompt_only = evidence.baseline, evidence.prompt_only
    change = baseline.change(evidence.chosen)
    if prompt_only is None or change == 0 or not baseline.is_clear(prompt_only):
        return
    if baseline.effect(prompt_only, change) >= WHOLE:
        text = f"An instruction in the prompt does it too, without any edit ({rate(prompt_only)})."
        yield Finding("prompt alone", text)


def _unfinished(evidence: Evidence) -> Iterator[Finding]:
    """Whether replies end inside their thinking, where nothing can be judged."""
    unedited, chosen = evidence.baseline.unedited, evidence.chosen
    if unedited.unfinished or chosen.unfinished:
        text = (
            f"Replies that end inside their thinking are not judged: {unedited.unfinished} without "
            f"edits, {chosen.unfinished} with them. Raise max_new_tokens, or turn thinking off."
        )
        yield Finding("unfinished", text)
