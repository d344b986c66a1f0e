"""How an arm differs from the unedited one: its effect on the behaviour, and what it loses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from saescope.control.evaluation.arm_results import ArmResult

# An arm has lost something if a figure is this much worse than without edits.
HARMLESS_KL, HARMLESS_PPL_RATIO = 0.1, 1.2
MORE_REPETITION, FEWER_ENDED, FEWER_RIGHT, MORE_WITHOUT_LABEL = 0.1, 0.1, 0.05, 0.1
LANGUAGE_FLIPS = 0.1


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
        return arm.behaviour_rate - self.unedited.behaviour_rate

    def effect(self, arm: ArmResult, direction: float) -> float:
        """Share of the largest possible change: down if `direction` is negative, else up."""
        if direction < 0:
            change, largest = -self.change(arm), self.rate
        else:
            change, largest = self.change(arm), 1 - self.rate
        return max(0.0, change) / largest if largest else 0.0

    def is_clear(self, arm: ArmResult) -> bool:
        """Whether the arm's interval and the unedited one do not overlap."""
        low, high = self.unedited.ci
        return arm.ci[1] < low or arm.ci[0] > high

    def losses(self, arm: ArmResult) -> list[str]:
        """What the arm has lost, one clause each."""
        return [
            *_distribution_losses(arm),
            *_generation_losses(self.unedited, arm),
            *self._lost_answers(arm),
            *self._language_losses(arm),
        ]

    def _lost_answers(self, arm: ArmResult) -> Iterator[str]:
        sets = []
        for name, before in self.unedited.sets.items():
            right_before, right = before.right_rate, arm.sets[name].right_rate
            if name in self.target or right_before is None or right is None:
                continue
            if right < right_before - FEWER_RIGHT:
                sets.append(f"{name} ({percent(right)}, {percent(right_before)} before)")
        if sets:
            yield f"right answers are lost on {', '.join(sets)}"

    def _language_losses(self, arm: ArmResult) -> Iterator[str]:
        flips = arm.language_flip or 0.0
        if flips > LANGUAGE_FLIPS and not self.about_language:
            yield f"{percent(flips)} of the replies are in another language"


def _distribution_losses(arm: ArmResult) -> Iterator[str]:
    damage = arm.damage
    if damage is None:
        return
    if damage.kl_mean > HARMLESS_KL or damage.ppl_ratio > HARMLESS_PPL_RATIO:
        kl, ratio = f"{damage.kl_mean:.3g}", f"{damage.ppl_ratio:.2f}"
        yield f"KL {kl} per token on neutral text, perplexity {ratio} times"


def _generation_losses(unedited: ArmResult, arm: ArmResult) -> Iterator[str]:
    if arm.repetition > unedited.repetition + MORE_REPETITION:
        before, after = f"{unedited.repetition:.2f}", f"{arm.repetition:.2f}"
        yield f"replies repeat themselves ({after} of trigrams, {before} before)"
    if arm.ended < unedited.ended - FEWER_ENDED:
        yield f"replies end less often ({percent(arm.ended)}, {percent(unedited.ended)} before)"
    for label in ("empty", "unscored", "unfinished"):
        before_share, share = _label_share(unedited, label), _label_share(arm, label)
        if share > before_share + MORE_WITHOUT_LABEL:
            yield f"{percent(share)} of the replies are {label} ({percent(before_share)} before)"


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
