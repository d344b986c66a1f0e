"""Before and after: what edits do to a behaviour on held-out prompts, and to everything else, beside controls.

Every condition is measured on the same prompts. An effect counts where its interval is clear of the unedited one's, and
counts for these edits only where the controls (nothing, the opposite, another feature that fires as often, another
direction of the same length) do not have it too.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import numpy as np
from scipy.special import betainc

from saescope.analysis import stats
from saescope.control.behaviour import EMPTY, Judge, normalised
from saescope.control.damage import Damage, damage, repetition
from saescope.control.edits import Edit
from saescope.control.receipts import Receipt
from saescope.control.steer import steered
from saescope.engine.extract import compute, plan
from saescope.engine.generate import Generation, generate
from saescope.engine.lm import LM
from saescope.engine.sae import TopKSae
from saescope.engine.tokens import prompt_ids
from saescope.errors import PromptError
from saescope.sources.catalog import Feature
from saescope.sources.prompts import Prompt
from saescope.table import Table

_BATCH = 32
_NEAR = 10
HARMLESS_KL, HARMLESS_PPL = 0.1, 1.2
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SetOutcome:
    """One set's replies under one condition: the share that shows the behaviour, and the right ones where known."""

    prompts: int
    behaviour_rate: float
    ci: tuple[float, float]
    right_rate: float | None


@dataclass(frozen=True)
class Condition:
    """One row: a way of editing (or not), how often the behaviour shows, and what else happens.

    `mcnemar_p` compares with the unedited replies to the same prompts; `empty` replies are neither shown nor absent.
    Damage is over tokens of neutral text; `repetition` the share of token trigrams that recur in a reply.
    """

    name: str
    strength: float | None
    behaviour_rate: float
    ci: tuple[float, float]
    mcnemar_p: float | None
    empty: int
    right_rate: float | None
    repetition: float
    mean_tokens: float
    ended: float
    delta_norm_ratio: float
    applied: bool
    damage: Damage | None
    sets: dict[str, SetOutcome]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, damage among them."""
        own = {k: v for k, v in vars(self).items() if k not in ("damage", "sets")}
        sets = {name: {**vars(one), "ci": list(one.ci)} for name, one in self.sets.items()}
        hurt = vars(self.damage) if self.damage else dict.fromkeys(Damage.__dataclass_fields__)
        return {**own, "ci": list(self.ci), **{k: v for k, v in hurt.items() if k != "tokens"}, "sets": sets}


@final
@dataclass(frozen=True)
class Evaluation(Table):
    """The answer to `evaluate`: the unedited condition first, then the edits, then the controls."""

    target: list[str]
    conditions: list[Condition]
    replies: dict[str, list[str]]
    prompts: list[Prompt]
    neutral_tokens: int

    @property
    def verdict(self) -> list[str]:
        """What may be concluded, a sentence each."""
        return _verdict(self.conditions)

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope evaluate`."""
        return {
            "target": self.target,
            "conditions": [condition.to_dict() for condition in self.conditions],
            "neutral_tokens": self.neutral_tokens,
            "verdict": " ".join(self.verdict),
            "replies": [
                {"id": p.id, "set": p.set, "prompt": p.shown, "by": {k: texts[n] for k, texts in self.replies.items()}}
                for n, p in enumerate(self.prompts)
            ],
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row a condition."""
        return [{k: v for k, v in c.to_dict().items() if k != "sets"} for c in self.conditions]


@dataclass(frozen=True)
class _Way:
    """One way of editing: its name, the multiple of the edits' strength, and how it is entered."""

    name: str
    strength: float | None
    enter: Callable[[], AbstractContextManager[Receipt | None]]


def evaluate(
    lm: LM,
    saes: Sequence[TopKSae],
    edits: Sequence[Edit],
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    target: Sequence[str] | None = None,
    neutral: Sequence[Prompt] = (),
    answers: Mapping[str, str] | None = None,
    sweep: Sequence[float] = (1.0,),
    seed: int = 0,
    max_new_tokens: int = 48,
    thinking: bool | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Greedy replies to every prompt without edits, with them at every multiple of `sweep`, and under the controls.

    The behaviour's rate is over prompts of the sets `target`, all when left out; right answers are replies that are
    `answers` to the letter, case and spaces aside. Raises PromptError for sets that are not there.
    """
    sets = list(dict.fromkeys(p.set for p in prompts))
    wanted = list(target or sets)
    if unknown := [name for name in wanted if name not in sets]:
        raise PromptError(f"there is no set {unknown[0]!r}: the sets are {', '.join(sets)}")
    ways = _ways(lm, saes, edits, prompts, sweep, seed)
    rows = [ids for ids in (prompt_ids(lm, prompt) for prompt in neutral) if len(ids) > 1]
    hurt = damage(lm, rows, [way.enter for way in ways]) if rows else [None] * len(ways)
    conditions: list[Condition] = []
    replies: dict[str, list[str]] = {}
    base: list[str | None] | None = None
    for n, way in enumerate(ways):
        with way.enter() as receipt:
            written = _reply(lm, prompts, max_new_tokens, thinking)
        if progress:
            progress(n + 1, len(ways))
        labels = [judge(one.text) for one in written]
        base = labels if base is None else base
        conditions.append(_condition(way, prompts, wanted, written, labels, base, answers, receipt, hurt[n]))
        replies[_title(way)] = [one.text for one in written]
    return Evaluation(wanted, conditions, replies, list(prompts), sum(map(len, rows)))


def _title(way: _Way) -> str:
    return way.name if way.strength is None else f"{way.name} x{way.strength:g}"


def _ways(
    lm: LM, saes: Sequence[TopKSae], edits: Sequence[Edit], prompts: Sequence[Prompt], sweep: Sequence[float], seed: int
) -> list[_Way]:
    def edited(strength: float, chosen: Sequence[Edit] = edits, turned: int | None = None) -> Callable[[], Any]:
        return partial(steered, lm, [_times(edit, strength) for edit in chosen], saes, random_directions=turned)

    most = max(sweep, key=abs)
    signed = any(edit.op in ("add", "scale") for edit in edits)  # only these have an opposite and multiples
    if len(sweep) > 1 and all(edit.op in ("clamp", "readout_clamp") for edit in edits):
        raise PromptError("a clamp has a target and no multiples of it: leave --sweep out")
    others = _like(lm, saes, edits, prompts, seed)
    return [
        _Way("none", None, nullcontext),
        *(_Way("edits", strength, edited(strength)) for strength in sweep if strength),
        _Way("zero", 0.0, edited(0.0)),
        *([_Way("minus", -most, edited(-most))] if signed else []),
        *([_Way("random feature", most, edited(most, others))] if others else []),
        _Way("random direction", most, edited(most, edits, seed)),
    ]


def _times(edit: Edit, factor: float) -> Edit:
    """The edit at a multiple of its strength; what only removes (project, the clamps) cannot be more than itself."""
    if edit.op == "project":
        return replace(edit, strength=min(1.0, max(0.0, edit.amount * factor)))
    if edit.op in ("clamp", "readout_clamp"):
        # A target has no multiple; where there is to be no edit there is none.
        return edit if factor else replace(edit, op="add", strength=0.0)
    return replace(edit, strength=edit.amount * factor)


def _like(lm: LM, saes: Sequence[TopKSae], edits: Sequence[Edit], prompts: Sequence[Prompt], seed: int) -> list[Edit]:
    """For every edit of a feature the same of a random other one that fires about as often on these prompts."""
    edits = [edit for edit in edits if edit.feature is not None]
    if not edits:
        return []
    work = plan(lm, prompts)
    counts = {sae.spec.layer: np.zeros(sae.spec.d_sae, np.int64) for sae in saes}
    for _, layer, features, _ in compute(lm, saes, work):
        counts[layer] += np.bincount(features.ids[features.acts > 0], minlength=len(counts[layer]))
    rng = np.random.default_rng(seed)
    taken = {edit.at for edit in edits}
    chosen = []
    for edit in edits:
        layer, fired = edit.at.layer, counts[edit.at.layer]
        near = np.argsort(np.abs(fired - fired[edit.at.id]), kind="stable")
        free = [n for n in near.tolist() if fired[n] and Feature(layer, n) not in taken][:_NEAR]
        if not free:
            raise PromptError(
                f"no other feature of layer {layer} fires on these prompts: there is no control to compare"
            )
        other = Feature(layer, free[int(rng.integers(len(free)))])
        taken.add(other)
        chosen.append(replace(edit, feature=other))
    return chosen


def _reply(lm: LM, prompts: Sequence[Prompt], max_new_tokens: int, thinking: bool | None) -> list[Generation]:
    written: list[Generation] = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        written += generate(lm, batch, max_new_tokens=max_new_tokens, thinking=thinking)
    return written


def _condition(
    way: _Way,
    prompts: Sequence[Prompt],
    target: Sequence[str],
    written: Sequence[Generation],
    labels: Sequence[str | None],
    base: Sequence[str | None],
    answers: Mapping[str, str] | None,
    receipt: Receipt | None,
    hurt: Damage | None,
) -> Condition:
    rows = [n for n, p in enumerate(prompts) if p.set in target]
    rate, ci = _rate([_shown(labels[n]) for n in rows])
    by_set = {
        name: _outcome([n for n, p in enumerate(prompts) if p.set == name], prompts, written, labels, answers)
        for name in dict.fromkeys(p.set for p in prompts)
    }
    return Condition(
        name=way.name,
        strength=way.strength,
        behaviour_rate=rate,
        ci=ci,
        mcnemar_p=None if receipt is None else mcnemar([(_shown(base[n]), _shown(labels[n])) for n in rows]),
        empty=sum(labels[n] == EMPTY for n in rows),
        right_rate=_right(range(len(prompts)), prompts, written, answers),
        repetition=float(np.mean([repetition(one.ids) for one in written])),
        mean_tokens=float(np.mean([len(one.ids) for one in written])),
        ended=float(np.mean([one.ended for one in written])),
        delta_norm_ratio=receipt.delta_norm_ratio if receipt else 0.0,
        applied=receipt.applied if receipt else False,
        damage=hurt,
        sets=by_set,
    )


def _shown(label: str | None) -> bool:
    return label is not None and label != EMPTY


def _rate(shown: Sequence[bool]) -> tuple[float, tuple[float, float]]:
    share = sum(shown) / len(shown) if shown else 0.0
    low, high = stats.wilson(share, len(shown))
    return share, (float(low), float(high))


def _outcome(
    rows: Sequence[int],
    prompts: Sequence[Prompt],
    written: Sequence[Generation],
    labels: Sequence[str | None],
    answers: Mapping[str, str] | None,
) -> SetOutcome:
    rate, ci = _rate([_shown(labels[n]) for n in rows])
    return SetOutcome(len(rows), rate, ci, _right(rows, prompts, written, answers))


def _right(
    rows: Sequence[int], prompts: Sequence[Prompt], written: Sequence[Generation], answers: Mapping[str, str] | None
) -> float | None:
    known = [n for n in rows if answers and prompts[n].id in answers]
    if not known or answers is None:
        return None
    return sum(normalised(written[n].text) == normalised(answers[prompts[n].id]) for n in known) / len(known)


def mcnemar(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Exact two-sided p that before and after differ, from the prompts on which they do (McNemar 1947, binomial)."""
    gone = sum(before and not after for before, after in pairs)
    come = sum(after and not before for before, after in pairs)
    n, fewest = gone + come, min(gone, come)
    # P(at most `fewest` of n fair coins) by the incomplete beta function.
    return 1.0 if n == 0 or fewest == n - fewest else min(1.0, 2 * float(betainc(n - fewest, fewest + 1, 0.5)))


def _verdict(conditions: Sequence[Condition]) -> list[str]:
    base, tried = conditions[0], [c for c in conditions if c.name == "edits"]
    best = max(tried, key=lambda c: abs(c.behaviour_rate - base.behaviour_rate))
    effect = best.behaviour_rate - base.behaviour_rate
    shown = f"from {_percent(base)} to {_percent(best)}"
    clear = best.ci[1] < base.ci[0] or best.ci[0] > base.ci[1]
    lines = [f"The behaviour goes {shown} at {best.strength:g} times the strength."]
    if not best.applied:
        return [
            *lines,
            "Nothing was changed: no edited feature fired. Detection and control may lie at different sites.",
        ]
    if not clear:
        lines.append("That is no clear effect: detection without control; another strength, several features, or "
                     "another mechanism.")  # fmt: skip
    elif abs(effect) < 0.8 * abs(base.behaviour_rate if effect < 0 else 1 - base.behaviour_rate):
        lines.append("The effect is partial: several features may carry the behaviour.")
    moved = [c for c in conditions if c.name in ("random feature", "random direction")
             and abs(c.behaviour_rate - base.behaviour_rate) > 0.5 * abs(effect)]  # fmt: skip
    if clear and moved:
        lines.append(f"It is not specific: {' and '.join(c.name for c in moved)} moved it more than half as far.")
    return [*lines, *_losses(base, best)]


def _losses(base: Condition, best: Condition) -> list[str]:
    lines = []
    if best.damage and (best.damage.kl_mean > HARMLESS_KL or best.damage.ppl_ratio > HARMLESS_PPL):
        lines.append(f"Capability is lost: KL {best.damage.kl_mean:.3g} a token on neutral text, perplexity "
                     f"{best.damage.ppl_ratio:.2f} times.")  # fmt: skip
    if best.repetition > base.repetition + 0.1:
        lines.append(f"Replies repeat themselves ({best.repetition:.2f} of trigrams, {base.repetition:.2f} before).")
    if best.ended < base.ended - 0.1:
        lines.append(f"Replies end less often ({100 * best.ended:.0f} %, {100 * base.ended:.0f} % before).")
    lost = [
        f"{name} ({100 * (now.right_rate or 0):.0f} %, {100 * was.right_rate:.0f} % before)"
        for name, was in base.sets.items()
        if (now := best.sets[name]).right_rate is not None
        and was.right_rate is not None
        and now.right_rate < was.right_rate - 0.05
    ]
    return [*lines, *([f"Right answers are lost on {', '.join(lost)}."] if lost else [])]


def _percent(c: Condition) -> str:
    return f"{100 * c.behaviour_rate:.0f} % ({100 * c.ci[0]:.0f}-{100 * c.ci[1]:.0f})"
