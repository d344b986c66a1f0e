"""The result of an arm: rates with intervals, signs of broken generation, damage."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

import numpy as np

from saescope.control.evaluation.damage import Damage, mean_damage
from saescope.control.evaluation.metrics import mean_known, wilson_interval

Match = Literal["matched", "milder", "costlier", "wrecked"]


@dataclass(frozen=True)
class SetResult:
    """One set's replies under one arm."""

    prompts: int
    scored: int
    behaviour_rate: float | None
    ci: tuple[float, float]
    right_rate: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        return {**vars(self), "ci": list(self.ci)}


@final
@dataclass(frozen=True)
class ArmResult:
    """One arm: how often the behaviour shows in the target sets, and what else happens.

    Several draws of one control are pooled to one result: means over draws, counts of all draws.
    """

    name: str
    strength: float | None
    "Of several draws, the mean."
    behaviour_rate: float | None
    "Over the `scored` replies: `empty`, `unscored` and `unfinished` ones count neither way."
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
    "Mean of |change| / |residual| over the positions that the edits target."
    spread_ratio: float | None
    "Mean of |change| / spread of the residuals about their mean; None if that is not known."
    applied: bool
    damage: Damage | None
    sets: dict[str, SetResult]
    unfinished: int = 0
    "Replies that end inside their thinking, before an answer."
    languages: dict[str, int] = field(default_factory=dict)
    (
        "How many replies are in each language; others under `empty`, `unfinished`, `unscored` or "
        "`unknown` (judged, but in no language that can be told)."
    )
    draws: int = 1
    spread: tuple[float, float] | None = None
    "The smallest and the largest rate of several draws."
    each: list[dict[str, Any]] = field(default_factory=list)
    "Figures of every draw."
    match: Match | None = None
    "A control's damage beside the edits': `matched`, less, more, or so much that it is wrecked."

    def per_draw(self, count: int) -> float:
        """A count of all draws as the mean per draw, to stand beside arms with one draw."""
        return count / self.draws

    @property
    def relative_change(self) -> float:
        """Size of the change beside the spread if that is known, else beside the residual."""
        return self.delta_norm_ratio if self.spread_ratio is None else self.spread_ratio

    @property
    def kl_mean(self) -> float | None:
        """Mean KL on neutral text; None if damage was not measured."""
        return None if self.damage is None else self.damage.kl_mean

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict, with the figures of the damage."""
        plain = dict(vars(self))
        del plain["damage"], plain["sets"]
        plain["ci"] = list(self.ci)
        plain["spread"] = list(self.spread) if self.spread else None
        plain["matched"] = None if self.match is None else self.match == "matched"
        plain["wrecked"] = self.match == "wrecked"
        sets = {name: one.to_dict() for name, one in self.sets.items()}
        return {**plain, **self._damage(), "sets": sets}

    def _damage(self) -> dict[str, Any]:
        """The damage's figures, None if it was not measured."""
        figures: dict[str, Any] = dict.fromkeys(Damage.__dataclass_fields__)
        if self.damage is not None:
            figures = dict(vars(self.damage))
        del figures["tokens"]
        return figures


_AVERAGED = (
    "right_rate",
    "repetition",
    "mean_tokens",
    "ended",
    "language_flip",
    "off_language",
    "delta_norm_ratio",
    "spread_ratio",
)


def pooled(results: Sequence[ArmResult], draws: Sequence[str]) -> ArmResult:
    """One result for several draws of a control; `draws` says what each one was."""
    n = len(results)
    rates = [one.behaviour_rate for one in results if one.behaviour_rate is not None]
    rate = mean_known(rates)
    scored = sum(one.scored for one in results)
    p_values = [one.mcnemar_p for one in results if one.mcnemar_p is not None]
    languages = sum((Counter(one.languages) for one in results), Counter[str]())
    sets = {}
    for name in results[0].sets:
        sets[name] = _pooled_set([one.sets[name] for one in results])
    averages: dict[str, Any] = {}
    for name in _AVERAGED:
        averages[name] = mean_known([getattr(one, name) for one in results])
    return replace(
        results[0],
        strength=_mean_strength([one.strength for one in results]),
        behaviour_rate=rate,
        ci=wilson_interval(rate, scored / n),  # every draw has the same prompts
        mcnemar_p=min(p_values, default=None),
        scored=scored,
        empty=sum(one.empty for one in results),
        unscored=sum(one.unscored for one in results),
        unfinished=sum(one.unfinished for one in results),
        applied=any(one.applied for one in results),
        damage=mean_damage([one.damage for one in results if one.damage is not None]),
        sets=sets,
        languages=dict(languages.most_common()),
        draws=n,
        spread=(min(rates), max(rates)) if rates else None,
        each=[_draw_figures(draw, one) for draw, one in zip(draws, results, strict=True)],
        **averages,
    )


def _mean_strength(strengths: Sequence[float | None]) -> float | None:
    mean = mean_known(strengths)
    return None if mean is None else three_digits(mean)


def three_digits(strength: float) -> float:
    """The strength to three significant digits, as tables show it."""
    return float(np.format_float_scientific(strength, precision=2))


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
        "strength": result.strength,
        "behaviour_rate": result.behaviour_rate,
        "ci": list(result.ci),
        "right_rate": result.right_rate,
        "kl_mean": result.kl_mean,
        "match": result.match,
        "delta_norm_ratio": result.delta_norm_ratio,
        "spread_ratio": result.spread_ratio,
    }
