"""How an arm differs from the unedited one: its effect on the behaviour, and what it loses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from saescope.control.evaluation.arm_results import ArmResult

# An arm has lost something if a figure is this much worse than without edits.
HARMLESS_KL, HARMLESS_PPL_RATIO = 0.1, 1.2
MORE_REPETITION, FEWER_ENDED, FEWER_RIGHT, MORE_WITHOUT_LABEL = 0.1, 0.1, 0.05, 0.1
LANGUAGE_FLIPS = 0.1
_DIGITS = 9  # of a share: 12 of 15 replies are 80 %, in binary fractions too
LossKind = Literal[
    "text", "repetition", "ended", "empty", "unscored", "unfinished", "answers", "language"
]
BROKEN = 0.3  # so much more of a loss in replies than the edits have leaves no replies to judge


class Loss(NamedTuple):
    """Something that an arm has lost: of which kind, and a clause with the figures."""

    kind: LossKind
    clause: str


@dataclass(frozen=True)
class Baseline:
    """The unedited arm, with which every other arm is compared."""

    unedited: ArmResult
    about_language: bool = False
    "Whether the behaviour is a language, so that another language is no loss."

    target: Sequence[str] = ()
    "Sets whose replies are to change, so that their right answers are no loss."

    @property
    def rate(self) -> float:
        """The unedited rate, 0 if it is unknown."""
        return self.unedited.behaviour_rate or 0.0

    def change(self, arm: ArmResult) -> float:
        """The arm's rate minus the unedited one; 0 if either is unknown."""
        if arm.behaviour_rate is None or self.unedited.behaviour_rate is None:
            return 0.0
        return round(arm.behaviour_rate - self.unedited.behaviour_rate, _DIGITS)

    def effect(self, arm: ArmResult, direction: float) -> float:
        """Share of the largest possible change: down if `direction` is negative, else up."""
        if direction < 0:
            change, largest = -self.change(arm), self.rate
        else:
            change, largest = self.change(arm), 1 - self.rate
        return round(max(0.0, change) / largest, _DIGITS) if largest else 0.0

    def is_clear(self, arm: ArmResult) -> bool:
        """Whether the arm's interval and the unedited one do not overlap."""
        low, high = self.unedited.ci
        return arm.ci[1] < low or arm.ci[0] > high

    def losses(self, arm: ArmResult) -> list[str]:
        """What the arm has lost, one clause each."""
        return [loss.clause for loss in self._losses(arm)]

    def loses_more(self, arm: ArmResult, other: ArmResult) -> bool:
        """Whether the arm has lost something that the other one has not."""
        return bool(self._loss_kinds(arm) - self._loss_kinds(other))

    def breaks_replies(self, arm: ArmResult, other: ArmResult) -> bool:
        """Whether the arm's replies are broken, and neither the other arm's nor unedited ones."""
        before, beside = self._reply_losses(self.unedited), self._reply_losses(other)
        return any(
            share > max(before[kind], beside[kind]) + BROKEN
            for kind, share in self._reply_losses(arm).items()
        )

    def _reply_losses(self, arm: ArmResult) -> dict[LossKind, float]:
        """How large the share of each sign of broken replies is."""
        shares: dict[LossKind, float] = {"repetition": arm.repetition, "ended": 1 - arm.ended}
        shares["language"] = (not self.about_language) * (arm.language_flip or 0.0)
        for label in _WITHOUT_LABEL:
            shares[label] = _label_share(arm, label)
        return shares

    def _loss_kinds(self, arm: ArmResult) -> set[LossKind]:
        return {loss.kind for loss in self._losses(arm)}

    def _losses(self, arm: ArmResult) -> Iterator[Loss]:
        yield from _distribution_losses(arm)
        yield from _generation_losses(self.unedited, arm)
        yield from self._lost_answers(arm)
        yield from self._language_losses(arm)

    def _lost_answers(self, arm: ArmResult) -> Iterator[Loss]:
        sets = []
        for name, before in self.unedited.sets.items():
            right_before, right = before.right_rate, arm.sets[name].right_rate
            if name in self.target or right_before is None or right is None:
                continue
            if right < right_before - FEWER_RIGHT:
                sets.append(f"{name} ({percent(right)}, {percent(right_before)} before)")
        if sets:
            yield Loss("answers", f"right answers are lost on {', '.join(sets)}")

    def _language_losses(self, arm: ArmResult) -> Iterator[Loss]:
        flips = arm.language_flip or 0.0
        if flips > LANGUAGE_FLIPS and not self.about_language:
            yield Loss("language", f"{percent(flips)} of the replies are in another language")


def _distribution_losses(arm: ArmResult) -> Iterator[Loss]:
    damage = arm.damage
    if damage is None:
        return
    if damage.kl_mean > HARMLESS_KL or damage.ppl_ratio > HARMLESS_PPL_RATIO:
        kl, ratio = kl_text(damage.kl_mean), f"{damage.ppl_ratio:.2f}"
        yield Loss("text", f"KL {kl} per token on neutral text, perplexity {ratio} times")


def _generation_losses(unedited: ArmResult, arm: ArmResult) -> Iterator[Loss]:
    if arm.repetition > unedited.repetition + MORE_REPETITION:
        before, after = f"{unedited.repetition:.2f}", f"{arm.repetition:.2f}"
        clause = f"replies repeat themselves ({after} of trigrams, {before} before)"
        yield Loss("repetition", clause)
    if arm.ended < unedited.ended - FEWER_ENDED:
        ended, before = percent(arm.ended), percent(unedited.ended)
        yield Loss("ended", f"replies end less often ({ended}, {before} before)")
    for label in _WITHOUT_LABEL:
        before_share, share = _label_share(unedited, label), _label_share(arm, label)
        if share > before_share + MORE_WITHOUT_LABEL:
            clause = f"{percent(share)} of the replies are {label} ({percent(before_share)} before)"
            yield Loss(label, clause)


_WITHOUT_LABEL: tuple[Literal["empty", "unscored", "unfinished"], ...] = (
    "empty",
    "unscored",
    "unfinished",
)


def _label_share(arm: ArmResult, label: str) -> float:
    counts = {
        "scored": arm.scored,
        "empty": arm.empty,
        "unscored": arm.unscored,
        "unfinished": arm.unfinished,
    }
    return counts[label] / max(1, sum(counts.values()))


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{100 * share:.0f} %"


def kl_text(kl: float) -> str:
    """A KL with two significant digits, as tables show it."""
    if kl == 0:
        return "0"
    text = f"{kl:#.2g}"
    if "e+" in text:
        return f"{kl:.0f}"
    return text.rstrip(".")
