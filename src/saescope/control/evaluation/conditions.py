"""Rows of an evaluation: what was measured under each way of editing, as rates with intervals."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
from scipy.special import betainc

from saescope.analysis import stats
from saescope.control.evaluation.behaviour import (
    EMPTY,
    UNSCORED,
    Label,
    normalised,
    reply_text,
    shown,
)
from saescope.control.evaluation.damage import Damage, repetition
from saescope.control.evaluation.languages import language
from saescope.engine.generate import Generation
from saescope.sources.prompts import Prompt


@dataclass(frozen=True)
class Measured:
    """What came of one way of editing: replies, how much was changed, and damage to neutral text."""

    written: list[Generation]
    applied: bool
    delta_norm_ratio: float
    damage: Damage | None

    def to_plain(self) -> dict[str, Any]:
        """As plain values, to be kept."""
        hurt = vars(self.damage) if self.damage else None
        return {**vars(self), "written": [vars(one) for one in self.written], "damage": hurt}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Measured":
        """What `to_plain` gave."""
        hurt = Damage(**plain["damage"]) if plain["damage"] else None
        written = [Generation(**one) for one in plain["written"]]
        return cls(written, bool(plain["applied"]), float(plain["delta_norm_ratio"]), hurt)


@dataclass(frozen=True)
class SetOutcome:
    """One set's replies under one condition: the share that shows the behaviour, and the right ones where known."""

    prompts: int
    scored: int
    behaviour_rate: float | None
    ci: tuple[float, float]
    right_rate: float | None


@final
@dataclass(frozen=True)
class Condition:
    """One row: a way of editing (or not), how often the behaviour shows, and what else happens.

    The rate is over the `scored` replies: `empty` and `unscored` ones are neither shown nor absent. `mcnemar_p`
    compares with the unedited replies to the same prompts. `language_flip` is the share of replies in another language
    than the unedited ones, `off_language` than their prompts, of those whose languages can be told; `repetition` the
    share of token trigrams that recur in a reply. Damage is over tokens of neutral text. A control of several draws is
    one row: means, `spread` the smallest and largest rate, the p of the draw that differs most, and `each` by itself.
    """

    name: str
    strength: float | None
    behaviour_rate: float | None
    ci: tuple[float, float]
    mcnemar_p: float | None
    scored: int
    empty: int
    unscored: int
    right_rate: float | None
    repetition: float
    mean_tokens: float
    ended: float
    language_flip: float | None
    off_language: float | None
    delta_norm_ratio: float
    applied: bool
    damage: Damage | None
    sets: dict[str, SetOutcome]
    languages: dict[str, int] = field(default_factory=dict)
    draws: int = 1
    spread: tuple[float, float] | None = None
    each: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, damage among them."""
        own = {k: v for k, v in vars(self).items() if k not in ("damage", "sets")}
        sets = {name: {**vars(one), "ci": list(one.ci)} for name, one in self.sets.items()}
        hurt = vars(self.damage) if self.damage else dict.fromkeys(Damage.__dataclass_fields__)
        hurt = {k: v for k, v in hurt.items() if k != "tokens"}
        return {
            **own,
            "ci": list(self.ci),
            "spread": list(self.spread) if self.spread else None,
            **hurt,
            "sets": sets,
        }


@dataclass(frozen=True)
class Asked:
    """What every condition is measured on: prompts, the sets that show the behaviour, right answers by prompt id."""

    prompts: Sequence[Prompt]
    target: Sequence[str]
    answers: Mapping[str, str] | None

    @property
    def rows(self) -> list[int]:
        """The prompts of the target sets."""
        return [n for n, prompt in enumerate(self.prompts) if prompt.set in self.target]


def condition(
    name: str,
    strength: float | None,
    asked: Asked,
    measured: Measured,
    labels: Sequence[Label],
    base: tuple[Measured, Sequence[Label]] | None,
) -> Condition:
    """The row of one way; `base` is what came without edits, None for that row itself."""
    written, prompts, rows = measured.written, asked.prompts, asked.rows
    before = base[1] if base else labels
    told = [_language(one) for one in written]
    pairs = [
        (was, now)
        for n in rows
        if (was := shown(before[n])) is not None and (now := shown(labels[n])) is not None
    ]
    rate, ci, scored = _rate([labels[n] for n in rows])
    return Condition(
        name=name,
        strength=strength,
        behaviour_rate=rate,
        ci=ci,
        mcnemar_p=mcnemar(pairs) if base else None,
        scored=scored,
        empty=sum(labels[n] == EMPTY for n in rows),
        unscored=sum(labels[n] == UNSCORED for n in rows),
        right_rate=_right(range(len(prompts)), asked, written),
        repetition=float(np.mean([repetition(one.ids) for one in written])),
        mean_tokens=float(np.mean([len(one.ids) for one in written])),
        ended=float(np.mean([one.ended for one in written])),
        language_flip=_differ(
            [_language(one) for one in base[0].written] if base else told, told, rows
        ),
        off_language=_differ([language(_request(prompt)) for prompt in prompts], told, rows),
        delta_norm_ratio=measured.delta_norm_ratio,
        applied=measured.applied,
        damage=measured.damage,
        sets={
            group: _outcome(
                [n for n, p in enumerate(prompts) if p.set == group], asked, written, labels
            )
            for group in dict.fromkeys(p.set for p in prompts)
        },
        languages=dict(Counter(told[n] or UNSCORED for n in rows).most_common()),
    )


def pooled(rows: Sequence[Condition], drawn: Sequence[str]) -> Condition:
    """Several draws of one control as a row; `drawn` says what each was. Counts are of all draws together."""
    rates = [row.behaviour_rate for row in rows if row.behaviour_rate is not None]
    rate = _mean(rates)
    scored = sum(row.scored for row in rows)
    return replace(
        rows[0],
        behaviour_rate=rate,
        ci=_wilson(rate, scored / len(rows)),  # of one draw: the prompts are the same in each
        mcnemar_p=min((row.mcnemar_p for row in rows if row.mcnemar_p is not None), default=None),
        scored=scored,
        empty=sum(row.empty for row in rows),
        unscored=sum(row.unscored for row in rows),
        right_rate=_mean([row.right_rate for row in rows]),
        repetition=float(np.mean([row.repetition for row in rows])),
        mean_tokens=float(np.mean([row.mean_tokens for row in rows])),
        ended=float(np.mean([row.ended for row in rows])),
        language_flip=_mean([row.language_flip for row in rows]),
        off_language=_mean([row.off_language for row in rows]),
        delta_norm_ratio=float(np.mean([row.delta_norm_ratio for row in rows])),
        applied=any(row.applied for row in rows),
        damage=_mean_damage([row.damage for row in rows if row.damage is not None]),
        sets={name: _pooled_set([row.sets[name] for row in rows]) for name in rows[0].sets},
        languages=dict(sum((Counter(row.languages) for row in rows), Counter[str]()).most_common()),
        draws=len(rows),
        spread=(min(rates), max(rates)) if rates else None,
        each=[_draw(what, row) for what, row in zip(drawn, rows, strict=True)],
    )


def mcnemar(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Exact two-sided p that before and after differ, from the prompts on which they do (McNemar 1947, binomial)."""
    gone = sum(before and not after for before, after in pairs)
    come = sum(after and not before for before, after in pairs)
    n, fewest = gone + come, min(gone, come)
    # P(at most `fewest` of n fair coins) by the incomplete beta function.
    return (
        1.0
        if n == 0 or fewest == n - fewest
        else min(1.0, 2 * float(betainc(n - fewest, fewest + 1, 0.5)))
    )


def _rate(labels: Sequence[Label]) -> tuple[float | None, tuple[float, float], int]:
    """Share of replies that show the behaviour among those of which it can be said, its interval, and their number."""
    known = [value for value in map(shown, labels) if value is not None]
    rate = sum(known) / len(known) if known else None
    return rate, _wilson(rate, len(known)), len(known)


def _wilson(rate: float | None, n: float | int) -> tuple[float, float]:
    low, high = stats.wilson(rate or 0.0, n)
    return float(low), float(high)


def _outcome(
    rows: Sequence[int], asked: Asked, written: Sequence[Generation], labels: Sequence[Label]
) -> SetOutcome:
    rate, ci, scored = _rate([labels[n] for n in rows])
    return SetOutcome(len(rows), scored, rate, ci, _right(rows, asked, written))


def _right(rows: Sequence[int], asked: Asked, written: Sequence[Generation]) -> float | None:
    """Share of replies that are the right answer to the letter, of the prompts that have one."""
    answers = asked.answers or {}
    known = [(n, answers[asked.prompts[n].id]) for n in rows if asked.prompts[n].id in answers]
    if not known:
        return None
    return sum(normalised(written[n].text) == normalised(answer) for n, answer in known) / len(
        known
    )


def _language(written: Generation) -> str | None:
    return language(reply_text(written.text))


def _request(prompt: Prompt) -> str:
    """The text, or what the user said last."""
    said = [message.content for message in prompt.messages or () if message.role == "user"]
    return prompt.text or (said[-1] if said else "")


def _differ(
    before: Sequence[str | None], after: Sequence[str | None], rows: Sequence[int]
) -> float | None:
    """Share of rows whose languages differ, of those where both are known."""
    known = [before[n] != after[n] for n in rows if before[n] is not None and after[n] is not None]
    return sum(known) / len(known) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _mean_damage(draws: Sequence[Damage]) -> Damage | None:
    if not draws:
        return None

    def mean(of: Callable[[Damage], float]) -> float:
        return float(np.mean([of(one) for one in draws]))

    return Damage(
        tokens=draws[0].tokens,
        kl_mean=mean(lambda d: d.kl_mean),
        kl_p95=mean(lambda d: d.kl_p95),
        kl_p99=mean(lambda d: d.kl_p99),
        top1_flips=mean(lambda d: d.top1_flips),
        ppl_ratio=mean(lambda d: d.ppl_ratio),
        kl_sets={
            name: float(np.mean([d.kl_sets[name] for d in draws])) for name in draws[0].kl_sets
        },
    )


def _pooled_set(draws: Sequence[SetOutcome]) -> SetOutcome:
    rate, scored = _mean([one.behaviour_rate for one in draws]), sum(one.scored for one in draws)
    right = _mean([one.right_rate for one in draws])
    return SetOutcome(draws[0].prompts, scored, rate, _wilson(rate, scored / len(draws)), right)


def _draw(what: str, row: Condition) -> dict[str, Any]:
    """One draw's figures that its row only has the mean of."""
    return {
        "of": what,
        "behaviour_rate": row.behaviour_rate,
        "ci": list(row.ci),
        "right_rate": row.right_rate,
        "kl_mean": row.damage.kl_mean if row.damage else None,
        "delta_norm_ratio": row.delta_norm_ratio,
    }
