"""What results show, in words: whether edits work, why they may not, and what they cost.

Figures alone decide, by numbered rules. docs/evaluate.md lists them in the same order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from saescope.control.evaluation.arm_results import ArmResult
from saescope.control.evaluation.controls import MEANS
from saescope.control.evaluation.effects import Baseline, kl_text, percent
from saescope.control.evaluation.evidence import (
    WHOLE,
    Evidence,
    Finding,
    are_apart,
    rate,
    rate_at_kl,
)

_AT_DAMAGE = {
    "matched": " at the same damage",
    "milder": " at less damage",
    "costlier": " at more damage",
    None: "",
}
Rule = Callable[[Evidence], Iterator[Finding]]


def verdict(evidence: Evidence) -> list[Finding]:
    """What may be concluded of the chosen strength."""
    if _nothing_scored(evidence):
        rules: Sequence[Rule] = (_scored, _unfinished)
    elif not evidence.chosen.applied:
        rules = (_effect, _applied, _unfinished)
    else:
        rules = _RULES
    return [finding for rule in rules for finding in rule(evidence)]


def _nothing_scored(evidence: Evidence) -> str:
    """Which arm has no scored reply; empty if both have."""
    if evidence.baseline.unedited.behaviour_rate is None:
        return "without edits"
    if evidence.chosen.behaviour_rate is None:
        return "with the edits"
    return ""


def _scored(evidence: Evidence) -> Iterator[Finding]:
    which = _nothing_scored(evidence)
    text = f"Nothing can be said: no reply {which} could be judged."
    yield Finding("nothing scored", text)


def _effect(evidence: Evidence) -> Iterator[Finding]:
    chosen = evidence.chosen
    change = f"from {rate(evidence.baseline.unedited)} to {rate(chosen)}"
    how = f"with {evidence.edited} at {chosen.strength:g} times the strength"
    cost = ""
    if chosen.kl_mean is not None:
        cost = f", at KL {kl_text(chosen.kl_mean)}"
    yield Finding("effect", f"The behaviour goes {change} {how}{cost}.")


def _applied(_evidence: Evidence) -> Iterator[Finding]:
    text = (
        "Nothing was changed: no edited feature fired. "
        "Detection and control may lie at different sites."
    )
    yield Finding("nothing applied", text)


def _no_clear_effect(evidence: Evidence) -> Iterator[Finding]:
    if evidence.has_effect:
        return
    text = (
        "That is no clear effect: the two intervals overlap. Either the prompts are too few, or "
        "this is detection without control: the features are active where the behaviour shows, "
        "and do not decide it."
    )
    yield Finding("detection without control", text)


def _partial(evidence: Evidence) -> Iterator[Finding]:
    if evidence.has_effect and not evidence.is_whole:
        share = evidence.baseline.effect(evidence.chosen, evidence.direction)
        yield Finding("partial", f"The effect is partial: {percent(share)} of the way.")


def _mechanism(evidence: Evidence) -> Iterator[Finding]:
    """Where a missing effect may be found: in more features of the layer, or elsewhere."""
    if evidence.is_whole:
        return
    baseline, direction = evidence.baseline, evidence.direction
    if not evidence.means:
        yield _unknown_mechanism(evidence)
        return

    def merit(arm: ArmResult) -> tuple[bool, float]:
        return _is_whole(baseline, arm, direction), baseline.effect(arm, direction)

    best = max(evidence.means, key=merit)
    losses = baseline.losses(best)
    harm = f", and loses capability ({'; '.join(losses)})" if losses else ""
    where = f"{best.name}, at the same layer,"
    figures = f"({rate_at_kl(best)}{harm})"
    if _is_whole(baseline, best, direction):
        text = f"Several features are needed: {where} does it whole {figures}."
        yield Finding("several features needed", text)
        return
    missing = "the rest" if evidence.has_effect else "it"
    elsewhere = f"Another mechanism carries {missing}, or another layer"
    if all(abs(arm.strength or 0.0) < 1 for arm in evidence.means):
        elsewhere += ", or it takes more damage"
    lacks = "does not do it whole either"
    if baseline.is_clear(best) and baseline.effect(best, direction) >= WHOLE:
        lacks = "does it only at a loss"
    yield Finding("another mechanism", f"{elsewhere}: {where} {lacks} {figures}.")


def _unknown_mechanism(evidence: Evidence) -> Finding:
    why = "was not measured"
    if any(arm.name.startswith(MEANS) for arm in evidence.wrecked):
        why = "wrecks the model, so it cannot tell"
    text = (
        "Several features may be needed, or another mechanism is at work: "
        f"difference of means {why}."
    )
    return Finding("several features needed", text)


def _is_whole(baseline: Baseline, arm: ArmResult, direction: float) -> bool:
    """Whether an arm has the whole effect.

    A behaviour that disappears at a loss may have gone with everything else: that does not count.
    """
    whole = baseline.is_clear(arm) and baseline.effect(arm, direction) >= WHOLE
    return whole and (direction > 0 or not baseline.losses(arm))


def _not_specific(evidence: Evidence) -> Iterator[Finding]:
    """Controls that change the behaviour the same way, more than half as far, at no more damage."""
    moved = [
        clause
        for arm in evidence.unspecific
        if arm.match != "costlier" and (clause := _moved(evidence, arm))
    ]
    if moved:
        text = f"It is not specific: {' and '.join(moved)} moved it more than half as far."
        yield Finding("not specific", text)


def _moved(evidence: Evidence, control: ArmResult) -> str:
    """The control, if it or at least half of its draws moved the rate half as far; else empty."""
    if not evidence.has_effect:
        return ""
    if evidence.goes_half_as_far(evidence.baseline.change(control)):
        return f"{control.name} ({rate_at_kl(control)})"
    similar = _similar_draws(evidence, control)
    if 2 * len(similar) >= len(control.each) > 0:
        return _draws_clause(control, similar)
    return ""


def _similar_draws(evidence: Evidence, control: ArmResult) -> list[Mapping[str, Any]]:
    """The draws that moved the rate more than half as far as the edits, the furthest last."""
    base = evidence.baseline.rate
    known = [draw for draw in control.each if draw["behaviour_rate"] is not None]
    similar = [draw for draw in known if evidence.goes_half_as_far(draw["behaviour_rate"] - base)]
    return sorted(similar, key=lambda draw: abs(float(draw["behaviour_rate"]) - base))


def _draws_clause(control: ArmResult, similar: Sequence[Mapping[str, Any]]) -> str:
    furthest = percent(similar[-1]["behaviour_rate"])
    return f"{len(similar)} of {len(control.each)} draws of a {control.name} (to {furthest})"


def _some_draws(evidence: Evidence) -> Iterator[Finding]:
    """Controls of which less than half of the draws move the rate half as far."""
    moved = []
    for control in evidence.unspecific:
        similar = _similar_draws(evidence, control)
        counts = evidence.has_effect and control.match != "costlier"
        if counts and similar and not _moved(evidence, control):
            moved.append(_draws_clause(control, similar))
    if moved:
        text = (
            "Not every change of this size leaves it alone: "
            f"{' and '.join(moved)} moved it more than half as far."
        )
        yield Finding("some draws", text)


def _equal_or_better(evidence: Evidence) -> Iterator[Finding]:
    """Controls that go as far as the edits at no more damage, and lose nothing else."""
    for arm in evidence.counted:
        if _is_equal_way(evidence, arm):
            how = "a better" if _is_better(evidence, arm) else "an equal"
            figures = f"{rate_at_kl(arm)}; the edits {rate_at_kl(evidence.chosen)}"
            name = arm.name + "," * ("," in arm.name)
            text = f"{_capital(name)} is {how} way ({figures})."
            yield Finding("equal or better way", text)


def _is_equal_way(evidence: Evidence, arm: ArmResult) -> bool:
    if not evidence.has_effect or arm.match not in ("matched", "milder"):
        return False
    return evidence.goes_as_far(arm) and not evidence.baseline.loses_more(arm, evidence.chosen)


def _is_better(evidence: Evidence, arm: ArmResult) -> bool:
    """Whether it goes at least as far at less damage, or clearly further at the same."""
    chosen = evidence.chosen
    further = abs(evidence.baseline.change(arm)) - abs(evidence.baseline.change(chosen))
    if arm.match == "milder":
        return further >= 0
    return further > 0 and are_apart(arm, chosen)


def _means(evidence: Evidence) -> Iterator[Finding]:
    """What the difference of means does, where it is no equal or better way."""
    if not evidence.has_effect:
        return
    others = [arm for arm in evidence.means if not _is_equal_way(evidence, arm)]
    if others:
        text = "; ".join(_means_clause(evidence, arm) for arm in others)
        yield Finding("difference of means", f"{_capital(text)}.")


def _means_clause(evidence: Evidence, arm: ArmResult) -> str:
    does = "has no clear effect"
    if evidence.goes_as_far(arm):
        does = "does it too"
    elif evidence.has_clear_part(arm):
        does = "does part of it"
    elif evidence.baseline.is_clear(arm):
        does = "does the opposite"
    losses = evidence.baseline.losses(arm)
    cost = f" and loses capability ({'; '.join(losses)})" if losses else ""
    return f"{arm.name}, {does}{_AT_DAMAGE[arm.match]} ({rate_at_kl(arm)}){cost}"


def _costlier(evidence: Evidence) -> Iterator[Finding]:
    """Controls that move the rate too, but at more damage than the edits."""
    moved = [
        clause
        for arm in evidence.unspecific
        if arm.match == "costlier" and (clause := _moved(evidence, arm))
    ]
    if moved:
        text = f"{' and '.join(moved)} moved it more than half as far, at more damage."
        yield Finding("costlier control", _capital(text))


def _milder(evidence: Evidence) -> Iterator[Finding]:
    """Controls that leave the rate alone, but could not be brought to the edits' damage."""
    weak = [
        f"{arm.name} ({rate_at_kl(arm)})"
        for arm in evidence.unspecific
        if arm.match == "milder" and evidence.has_effect and not _moved(evidence, arm)
    ]
    if weak:
        text = f"Weak evidence, at less damage than the edits: {' and '.join(weak)}."
        yield Finding("milder control", text)


def _prompt_alone(evidence: Evidence) -> Iterator[Finding]:
    """Whether an instruction in the prompt has the effect."""
    baseline = evidence.baseline
    for arm in evidence.counted:
        if arm.name != "prompt only":
            continue
        if evidence.has_effect and evidence.goes_as_far(arm):
            text = f"An instruction in the prompt does it too, without any edit ({rate(arm)})."
            yield Finding("prompt alone", text)
        elif not evidence.has_effect and _is_whole(baseline, arm, evidence.direction):
            text = f"An instruction in the prompt does it, without any edit ({rate(arm)})."
            yield Finding("prompt alone", text)


def _wrecked(evidence: Evidence) -> Iterator[Finding]:
    """Controls that are left out."""
    clauses = []
    for arm in evidence.wrecked:
        losses = evidence.baseline.losses(arm) or [rate_at_kl(arm)]
        clauses.append(f"{_draws_of(arm)} ({'; '.join(losses)})")
    if clauses:
        text = f"Left out as no evidence, since the model is wrecked: {' and '.join(clauses)}."
        yield Finding("wrecked control", text)


def _draws_of(arm: ArmResult) -> str:
    if not arm.each:
        return arm.name
    return f"{arm.draws} {'draws'[: 4 + (arm.draws != 1)]} of a {arm.name}"


def _capability(evidence: Evidence) -> Iterator[Finding]:
    losses = evidence.baseline.losses(evidence.chosen)
    if losses:
        yield Finding("capability lost", f"Capability is lost: {'; '.join(losses)}.")


def _unfinished(evidence: Evidence) -> Iterator[Finding]:
    """Whether replies end inside their thinking, where nothing can be judged."""
    unedited, chosen = evidence.baseline.unedited, evidence.chosen
    if unedited.unfinished or chosen.unfinished:
        text = (
            f"Replies that end inside their thinking are not judged: {unedited.unfinished} without "
            f"edits, {chosen.unfinished} with them. Raise max_new_tokens, or turn thinking off."
        )
        yield Finding("unfinished", text)


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


_RULES: tuple[Rule, ...] = (
    _effect,
    _no_clear_effect,
    _partial,
    _mechanism,
    _not_specific,
    _some_draws,
    _equal_or_better,
    _means,
    _costlier,
    _milder,
    _prompt_alone,
    _wrecked,
    _capability,
    _unfinished,
)
