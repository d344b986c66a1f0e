"""What was measured under each arm: rates with intervals, signs of broken generation, damage."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, final

import numpy as np

from saescope.control.evaluation.arms import Arm
from saescope.control.evaluation.damage import Damage, mean_damage, repetition
from saescope.control.evaluation.judge import (
    EMPTY,
    UNSCORED,
    Label,
    reply_text,
    shows_behaviour,
)
from saescope.control.evaluation.languages import detect_language
from saescope.control.evaluation.metrics import (
    behaviour_rate,
    mcnemar,
    mean_known,
    right_rate,
    share_changed,
    wilson_interval,
)
from saescope.engine.generate import Generation
from saescope.sources.prompts import Prompt


@dataclass(frozen=True)
class SetResult:
    """One set's replies under one arm."""

    prompts: int
    scored: int
    behaviour_rate: float | None
    ci: tuple[float, float]
    right_rate: float | None


@final
@dataclass(frozen=True)
class ArmResult:
    """One arm: how often the behaviour shows in the target sets, and what else happens.

    Several draws of one control are pooled to one result: means over draws, counts of all draws.
    """

    name: str
    strength: float | None
    behaviour_rate: float | None
    "Over the `scored` replies: `empty` and `unscored` ones count neither way."
    ci: tuple[float, float]
    mcnemar_p: float | None
    "Against the unedited replies to the same prompts; of several draws, the smallest."
    scored: int
    empty: int
    unscored: int
    right_rate: float | None
    "Share of replies, over all sets, that equal the right answer."
    repetition: float
    "Share of token trigrams that occurred before in the reply."
    mean_tokens: float
    ended: float
    "Share of replies that ended by themselves."
    language_flip: float | None
    "Share of replies in another language than the unedited ones, if both can be told."
    off_language: float | None
    "Share of replies in another language than their prompts, if both can be told."
    delta_norm_ratio: float
    applied: bool
    damage: Damage | None
    sets: dict[str, SetResult]
    languages: dict[str, int] = field(default_factory=dict)
    draws: int = 1
    spread: tuple[float, float] | None = None
    "The smallest and the largest rate of several draws."
    each: list[dict[str, Any]] = field(default_factory=list)
    "Figures of every draw."

    def to_dict(self) -> dict[str, Any]:
        """As plain values, the damage's figures among them."""
        plain = {name: value for name, value in vars(self).items() if name not in _NESTED}
        sets = {name: {**vars(one), "ci": list(one.ci)} for name, one in self.sets.items()}
        spread = None if self.spread is None else list(self.spread)
        return {**plain, "ci": list(self.ci), "spread": spread, **self._damage(), "sets": sets}

    def _damage(self) -> dict[str, Any]:
        if self.damage is None:
            figures = dict.fromkeys(Damage.__dataclass_fields__)
        else:
            figures = dict(vars(self.damage))
        del figures["tokens"]
        return figures


_NESTED = ("damage", "sets")


@dataclass(frozen=True)
class EvalSet:
    """What every arm is measured on."""

    prompts: Sequence[Prompt]
    target: Sequence[str]
    "Names of the sets that show the behaviour."
    answers: Mapping[str, str]
    "Right answers by prompt id."

    @property
    def target_rows(self) -> list[int]:
        """The numbers of the target sets' prompts."""
        return [n for n, prompt in enumerate(self.prompts) if prompt.set in self.target]

    @property
    def rows_of_sets(self) -> dict[str, list[int]]:
        """The numbers of every set's prompts."""
        rows: dict[str, list[int]] = {}
        for n, prompt in enumerate(self.prompts):
            rows.setdefault(prompt.set, []).append(n)
        return rows


@dataclass(frozen=True)
class ArmOutput:
    """What the model did under one arm, before any judge: replies, sizes of edits, damage."""

    replies: list[Generation]
    applied: bool
    delta_norm_ratio: float
    damage: Damage | None

    def to_plain(self) -> dict[str, Any]:
        """As plain values, for the cache."""
        replies = [vars(reply) for reply in self.replies]
        damage = None if self.damage is None else vars(self.damage)
        return {**vars(self), "replies": replies, "damage": damage}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "ArmOutput":
        """The output that `to_plain` was called on."""
        replies = [Generation(**reply) for reply in plain["replies"]]
        damage = None if plain["damage"] is None else Damage(**plain["damage"])
        return cls(replies, bool(plain["applied"]), float(plain["delta_norm_ratio"]), damage)


@dataclass(frozen=True)
class JudgedOutput:
    """An arm's output with a label per reply."""

    output: ArmOutput
    labels: list[Label]

    @property
    def texts(self) -> list[str]:
        """The replies' texts."""
        return [reply.text for reply in self.output.replies]

    @cached_property
    def languages(self) -> list[str | None]:
        """The replies' languages, None if they cannot be told."""
        return [detect_language(reply_text(text)) for text in self.texts]


def arm_result(
    arm: Arm, eval_set: EvalSet, judged: JudgedOutput, baseline: JudgedOutput | None
) -> ArmResult:
    """The arm's figures. `baseline` is the output without edits, None for that arm itself."""
    rows = eval_set.target_rows
    labels = [judged.labels[n] for n in rows]
    behaviour = behaviour_rate(labels)
    output, replies = judged.output, judged.output.replies
    languages = [judged.languages[n] for n in rows]
    unedited = [(baseline or judged).languages[n] for n in rows]
    requested = [detect_language(_request(eval_set.prompts[n])) for n in rows]
    return ArmResult(
        name=arm.name,
        strength=arm.strength,
        behaviour_rate=behaviour.rate,
        ci=behaviour.ci,
        mcnemar_p=None if baseline is None else _change_p(baseline, judged, rows),
        scored=behaviour.scored,
        empty=labels.count(EMPTY),
        unscored=labels.count(UNSCORED),
        right_rate=right_rate(eval_set.prompts, judged.texts, eval_set.answers),
        repetition=float(np.mean([repetition(reply.ids) for reply in replies])),
        mean_tokens=float(np.mean([len(reply.ids) for reply in replies])),
        ended=float(np.mean([reply.ended for reply in replies])),
        language_flip=share_changed(unedited, languages),
        off_language=share_changed(requested, languages),
        delta_norm_ratio=output.delta_norm_ratio,
        applied=output.applied,
        damage=output.damage,
        sets=_set_results(eval_set, judged),
        languages=dict(Counter(name or UNSCORED for name in languages).most_common()),
    )


def _change_p(baseline: JudgedOutput, judged: JudgedOutput, rows: Sequence[int]) -> float:
    """McNemar's p against the baseline, over prompts scored under both."""
    pairs = []
    for n in rows:
        before = shows_behaviour(baseline.labels[n])
        after = shows_behaviour(judged.labels[n])
        if before is not None and after is not None:
            pairs.append((before, after))
    return mcnemar(pairs)


def _request(prompt: Prompt) -> str:
    """A text, or the user's last message of a chat."""
    if prompt.text:
        return prompt.text
    messages = [m.content for m in prompt.messages or () if m.role == "user"]
    return messages[-1] if messages else ""


def _set_results(eval_set: EvalSet, judged: JudgedOutput) -> dict[str, SetResult]:
    results = {}
    for name, rows in eval_set.rows_of_sets.items():
        behaviour = behaviour_rate([judged.labels[n] for n in rows])
        prompts = [eval_set.prompts[n] for n in rows]
        texts = [judged.texts[n] for n in rows]
        right = right_rate(prompts, texts, eval_set.answers)
        results[name] = SetResult(len(rows), behaviour.scored, behaviour.rate, behaviour.ci, right)
    return results


_AVERAGED = (
    "right_rate",
    "repetition",
    "mean_tokens",
    "ended",
    "language_flip",
    "off_language",
    "delta_norm_ratio",
)


def pooled(results: Sequence[ArmResult], draws: Sequence[str]) -> ArmResult:
    """One result for several draws of a control; `draws` says what each one was."""
    n = len(results)
    rates = [one.behaviour_rate for one in results if one.behaviour_rate is not None]
    rate = mean_known(rates)
    scored = sum(one.scored for one in results)
    p_values = [one.mcnemar_p for one in results if one.mcnemar_p is not None]
    languages = sum((Counter(one.languages) for one in results), Counter[str]())
    averages: dict[str, Any] = {
        name: mean_known([getattr(one, name) for one in results]) for name in _AVERAGED
    }
    return replace(
        results[0],
        behaviour_rate=rate,
        ci=wilson_interval(rate, scored / n),  # every draw has the same prompts
        mcnemar_p=min(p_values, default=None),
        scored=scored,
        empty=sum(one.empty for one in results),
        unscored=sum(one.unscored for one in results),
        applied=any(one.applied for one in results),
        damage=mean_damage([one.damage for one in results if one.damage is not None]),
        sets={name: _pooled_set([one.sets[name] for one in results]) for name in results[0].sets},
        languages=dict(languages.most_common()),
        draws=n,
        spread=(min(rates), max(rates)) if rates else None,
        each=[_draw_figures(draw, one) for draw, one in zip(draws, results, strict=True)],
        **averages,
    )


def _pooled_set(draws: Sequence[SetResult]) -> SetResult:
    rate = mean_known([draw.behaviour_rate for draw in draws])
    scored = sum(draw.scored for draw in draws)
    right = mean_known([draw.right_rate for draw in draws])
    ci = wilson_interval(rate, scored / len(draws))
    return SetResult(draws[0].prompts, scored, rate, ci, right)


def _draw_figures(draw: str, result: ArmResult) -> dict[str, Any]:
    """One draw's figures, of which the pooled result has the mean."""
    return {
        "of": draw,
        "behaviour_rate": result.behaviour_rate,
        "ci": list(result.ci),
        "right_rate": result.right_rate,
        "kl_mean": None if result.damage is None else result.damage.kl_mean,
        "delta_norm_ratio": result.delta_norm_ratio,
    }
