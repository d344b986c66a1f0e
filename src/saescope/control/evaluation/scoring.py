"""Figures of an arm from its judged replies."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from saescope.control.evaluation.arm_results import ArmResult, SetResult
from saescope.control.evaluation.arms import Arm
from saescope.control.evaluation.damage import repetition
from saescope.control.evaluation.judge import (
    EMPTY,
    UNFINISHED,
    UNSCORED,
    Label,
    normalised,
    shows_behaviour,
)
from saescope.control.evaluation.languages import detect_language
from saescope.control.evaluation.metrics import mcnemar, share, wilson_interval
from saescope.control.evaluation.runner import ArmOutput
from saescope.engine.generate import Generation
from saescope.sources.prompts import Prompt


@dataclass(frozen=True)
class EvalSet:
    """What every arm is measured on."""

    prompts: Sequence[Prompt]
    target: Sequence[str]
    "Names of the sets that show the behaviour."

    answers: Mapping[str, str]
    "Right answers by prompt id."


@dataclass(frozen=True)
class JudgedReply:
    """A reply with its label."""

    prompt: Prompt
    generation: Generation
    label: Label

    @property
    def shows(self) -> bool | None:
        """Whether the behaviour shows; None if the reply is empty, unscored or unfinished."""
        return shows_behaviour(self.label)

    @cached_property
    def language(self) -> str | None:
        """The answer's language; None if it cannot be told."""
        return detect_language(self.generation.answer)

    @property
    def counted_as(self) -> str:
        """The answer's language, else why it has none: `empty`, `unfinished`, ..., or `unknown`."""
        if self.language is not None:
            return self.language
        if self.label in (EMPTY, UNFINISHED, UNSCORED):
            return str(self.label)
        return "unknown"


def score(
    arm: Arm,
    eval_set: EvalSet,
    output: ArmOutput,
    replies: Sequence[JudgedReply],
    baseline: Sequence[JudgedReply] | None,
) -> ArmResult:
    """The arm's figures. `baseline` has the replies without edits, None for that arm itself."""
    target = _of_sets(replies, eval_set.target)
    unedited = target if baseline is None else _of_sets(baseline, eval_set.target)
    labels = [reply.label for reply in target]
    behaviour = behaviour_rate(target)
    generations = [reply.generation for reply in replies]
    languages = Counter(reply.counted_as for reply in target)
    return ArmResult(
        name=arm.name,
        strength=arm.strength,
        behaviour_rate=behaviour.rate,
        ci=behaviour.ci,
        mcnemar_p=None if baseline is None else _change_p(unedited, target),
        scored=behaviour.scored,
        empty=labels.count(EMPTY),
        unscored=labels.count(UNSCORED),
        unfinished=labels.count(UNFINISHED),
        right_rate=_right_rate(replies, eval_set.answers),
        repetition=float(np.mean([repetition(one.ids) for one in generations])),
        mean_tokens=float(np.mean([len(one.ids) for one in generations])),
        ended=float(np.mean([one.ended for one in generations])),
        language_flip=_language_flip(unedited, target),
        off_language=_off_language(target),
        delta_norm_ratio=output.delta_norm_ratio,
        spread_ratio=output.spread_ratio,
        applied=output.applied,
        damage=output.damage,
        sets=_set_results(replies, eval_set),
        languages=dict(languages.most_common()),
    )


@dataclass(frozen=True)
class Rate:
    """The share of scored replies that show the behaviour, and its 95 % interval (Wilson)."""

    rate: float | None
    "None if no reply could be scored."

    ci: tuple[float, float]
    scored: int


def behaviour_rate(replies: Sequence[JudgedReply]) -> Rate:
    """The rate over all replies but empty, unscored and unfinished ones."""
    scored = [reply.shows for reply in replies if reply.shows is not None]
    rate = share(scored)
    return Rate(rate, wilson_interval(rate, len(scored)), len(scored))


def _of_sets(replies: Sequence[JudgedReply], sets: Sequence[str]) -> list[JudgedReply]:
    return [reply for reply in replies if reply.prompt.set in sets]


def _change_p(before: Sequence[JudgedReply], after: Sequence[JudgedReply]) -> float:
    """McNemar's p, over prompts whose replies are scored in both arms."""
    pairs = []
    for old, new in zip(before, after, strict=True):
        if old.shows is not None and new.shows is not None:
            pairs.append((old.shows, new.shows))
    return mcnemar(pairs)


def _right_rate(replies: Sequence[JudgedReply], answers: Mapping[str, str]) -> float | None:
    """The share of replies that equal the right answer, over prompts that have one."""
    right = []
    for reply in replies:
        answer = answers.get(reply.prompt.id)
        if answer is not None:
            right.append(normalised(reply.generation.answer) == normalised(answer))
    return share(right)


def _language_flip(before: Sequence[JudgedReply], after: Sequence[JudgedReply]) -> float | None:
    """The share of replies in another language than before."""
    return _share_changed([r.language for r in before], [r.language for r in after])


def _off_language(replies: Sequence[JudgedReply]) -> float | None:
    """The share of replies in another language than their prompts."""
    requested = [detect_language(reply.prompt.request) for reply in replies]
    return _share_changed(requested, [reply.language for reply in replies])


def _share_changed(before: Sequence[str | None], after: Sequence[str | None]) -> float | None:
    """The share of pairs that differ, over pairs of which both are known."""
    changed = []
    for old, new in zip(before, after, strict=True):
        if old is not None and new is not None:
            changed.append(old != new)
    return share(changed)


def _set_results(replies: Sequence[JudgedReply], eval_set: EvalSet) -> dict[str, SetResult]:
    results = {}
    for name in dict.fromkeys(prompt.set for prompt in eval_set.prompts):
        of_set = _of_sets(replies, [name])
        behaviour = behaviour_rate(of_set)
        results[name] = SetResult(
            prompts=len(of_set),
            scored=behaviour.scored,
            behaviour_rate=behaviour.rate,
            ci=behaviour.ci,
            right_rate=_right_rate(of_set, eval_set.answers),
        )
    return results
