"""The figures that a verdict rests on, and the comparisons that its rules are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from saescope.control.evaluation.arm_results import ArmResult
from saescope.control.evaluation.controls import MEANS
from saescope.control.evaluation.effects import Baseline, kl_text, percent

WHOLE = 0.8  # share of the largest possible change from which an effect is whole
AS_FAR = 0.8  # share of the edits' change from which a control goes as far
HALF_AS_FAR = 0.5  # share of the edits' change beyond which they are not specific
UNSPECIFIC = ("zero", "minus", "random feature", "random direction")
FindingName = Literal[
    "nothing scored",
    "effect",
    "nothing applied",
    "detection without control",
    "partial",
    "several features needed",
    "another mechanism",
    "not specific",
    "some draws",
    "equal or better way",
    "difference of means",
    "costlier control",
    "milder control",
    "prompt alone",
    "wrecked control",
    "capability lost",
    "unfinished",
    "judge error",
]


@dataclass(frozen=True)
class Finding:
    """One thing that the figures show: its name, and a sentence with the figures."""

    name: FindingName
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
    def counted(self) -> list[ArmResult]:
        """Controls that are evidence: all but wrecked ones."""
        return [arm for arm in self.controls if arm.match != "wrecked"]

    @property
    def wrecked(self) -> list[ArmResult]:
        """Controls that are no evidence."""
        return [arm for arm in self.controls if arm.match == "wrecked"]

    @property
    def means(self) -> list[ArmResult]:
        """Results of the difference of means that are evidence."""
        return [arm for arm in self.counted if arm.name.startswith(MEANS)]

    @property
    def unspecific(self) -> list[ArmResult]:
        """Results that are evidence of controls in which nothing depends on the features."""
        return [arm for arm in self.counted if arm.name in UNSPECIFIC]

    @property
    def has_effect(self) -> bool:
        """Whether the edits have a clear effect."""
        return self.baseline.is_clear(self.chosen)

    @property
    def is_whole(self) -> bool:
        """Whether the edits have a clear and whole effect."""
        return self.has_effect and self.baseline.effect(self.chosen, self.direction) >= WHOLE

    @property
    def direction(self) -> float:
        """Where the edits move the rate; if they have no clear effect, away from where it is."""
        if self.has_effect:
            return self.baseline.change(self.chosen)
        return -1.0 if self.baseline.rate >= 0.5 else 1.0

    def share(self, change: float) -> float:
        """A change of the rate as a share of the edits'; negative if it goes the other way."""
        own = self.baseline.change(self.chosen)
        return round(change / own, 9) if own else 0.0

    def goes_as_far(self, arm: ArmResult) -> bool:
        """Whether a control has a clear effect that is as large as the edits', or nearly.

        It is not if it moves the rate less, and the two intervals do not overlap.
        """
        share = self.share(self.baseline.change(arm))
        clearly_less = share < 1 and are_apart(arm, self.chosen)
        return share >= AS_FAR and self.baseline.is_clear(arm) and not clearly_less

    def goes_half_as_far(self, change: float) -> bool:
        """Whether a change of the rate is more than half of the edits', the same way."""
        return self.share(change) > HALF_AS_FAR

    def has_clear_part(self, arm: ArmResult) -> bool:
        """Whether a control moves the rate clearly, the same way as the edits."""
        return self.share(self.baseline.change(arm)) > 0 and self.baseline.is_clear(arm)


def are_apart(one: ArmResult, other: ArmResult) -> bool:
    """Whether the intervals of two rates do not overlap."""
    return one.ci[1] < other.ci[0] or one.ci[0] > other.ci[1]


def choose(baseline: Baseline, tried: Sequence[ArmResult]) -> ArmResult:
    """The best strength: a clear effect without losses, then the largest effect, then least KL."""

    def merit(arm: ArmResult) -> tuple[bool, bool, float, float]:
        clear = baseline.is_clear(arm)
        return (
            clear and not baseline.losses(arm),
            clear,
            abs(baseline.change(arm)),
            -(arm.kl_mean or 0.0),
        )

    return max(tried, key=merit)


def rate(arm: ArmResult) -> str:
    """The arm's rate in percent, with its interval or with the range over its draws."""
    if arm.behaviour_rate is None:
        return "unknown"
    (low, high), draws = arm.ci, ""
    if arm.spread is not None:
        (low, high), draws = arm.spread, f" in {arm.draws}"
    return f"{percent(arm.behaviour_rate)} ({100 * low:.0f}-{100 * high:.0f}{draws})"


def rate_at_kl(arm: ArmResult) -> str:
    """The arm's rate, and its KL if that is known."""
    if arm.kl_mean is None:
        return rate(arm)
    return f"{rate(arm)}, KL {kl_text(arm.kl_mean)}"
