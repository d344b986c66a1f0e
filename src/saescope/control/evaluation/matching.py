"""Controls at matched damage: each at the strength where its KL equals that of the edits.

The search measures damage only. KL grows about with the square of the strength, so that few rounds
are enough; every round measures all controls at once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from saescope.control.edits import Edit
from saescope.control.evaluation.arm_results import Match, three_digits
from saescope.control.evaluation.arms import Arm, times
from saescope.control.evaluation.damage import Damage
from saescope.control.evaluation.effects import HARMLESS_KL

TOLERANCE = 0.15  # KL this close to the edits' is the same damage
WRECKED_FACTOR, WRECKED_KL = 3.0, HARMLESS_KL  # KL beyond both is no evidence
LEAST_KL = 1e-5  # below this, neutral text is left as it is
_FURTHEST = 30.0  # largest strength tried, in multiples of the strength of the edits
_LARGEST_AMOUNT = 999_999.0  # of an edit
_ROUNDS = 8
_QUADRATIC, _LEAST_POWER, _LARGEST_POWER = 2.0, 0.3, 6.0  # KL grows with strength to this
_CLAMPS = ("clamp", "readout_clamp")
# Rounding: half the strength has nearly the same KL. Controls that it keeps from the edits' damage
# run where the KL is twice that of rounding, at a strength that means something.
_FLAT_STRENGTHS, _FLAT_KL, _ABOVE_ROUNDING = 2.0, 1.25, 2.0
MeasureDamages = Callable[[Sequence[Arm]], Sequence[Damage | None]]


def damage_match(kl: float | None, edits_kl: float | None) -> Match | None:
    """How a control's KL compares with the edits'; None if one is unknown.

    >>> damage_match(0.0021, 0.002), damage_match(0.4, 0.002), damage_match(0.01, 0.002)
    ('matched', 'wrecked', 'costlier')
    """
    if kl is None or edits_kl is None:
        return None
    if kl > max(WRECKED_KL, WRECKED_FACTOR * edits_kl):
        return "wrecked"
    margin = max(TOLERANCE * edits_kl, LEAST_KL)
    if abs(kl - edits_kl) <= margin:
        return "matched"
    if kl > edits_kl:
        return "costlier"
    return "milder"


@dataclass(frozen=True)
class Control:
    """A control arm, and the edits of which it applies a multiple.

    `arm` has the strength that the edits have, or 1 if it is a baseline of its own. An arm without
    edits to multiply has no other strength.
    """

    arm: Arm
    unit: tuple[Edit, ...] = ()
    "The edits at strength 1."

    def at(self, multiple: float) -> Arm:
        """The arm at a multiple of its strength, to three digits."""
        strength = three_digits((self.arm.strength or 0.0) * multiple)
        return Arm(
            self.arm.name,
            strength,
            times(self.unit, strength),
            direction_seed=self.arm.direction_seed,
            draw=self.arm.draw,
        )

    @property
    def adjustable(self) -> bool:
        """Whether another strength makes another arm: clamps have a target and no multiples."""
        return bool(self.arm.strength) and any(edit.op not in _CLAMPS for edit in self.unit)

    @property
    def largest(self) -> float:
        """The largest multiple that may be tried; shares to project out end at 1."""
        strength = abs(self.arm.strength or 1.0)
        moving = [edit for edit in self.unit if edit.op not in _CLAMPS and edit.amount]
        if all(edit.op == "project" for edit in moving):
            return 1 / (strength * min((edit.amount for edit in moving), default=1.0))
        most = max(abs(edit.amount) for edit in moving)
        return min(_FURTHEST, _LARGEST_AMOUNT / (strength * most))


def at_matched_damage(
    controls: Sequence[Control], edits_kl: float, measure: MeasureDamages
) -> list[Arm]:
    """Every control at the strength where its KL is nearest to the edits'.

    The search of a control ends when its KL is within the tolerance, or when no strength comes
    nearer. Controls that have no other strength stay as they are.

    In bfloat16 a change of every position costs some KL by rounding, however small it is. If that
    is more than the edits cost, no strength matches: the control runs at twice that KL.
    """
    searches = {n: _Search(one, edits_kl) for n, one in enumerate(controls) if one.adjustable}
    _search(searches, measure)
    for search in searches.values():
        rounding = search.rounding_kl
        if rounding is not None:
            search.target_kl = _ABOVE_ROUNDING * rounding
    _search(searches, measure)
    return [searches[n].best if n in searches else one.arm for n, one in enumerate(controls)]


def _search(searches: Mapping[int, "_Search"], measure: MeasureDamages) -> None:
    """Measure strengths, one of each search per round, until all searches have ended."""
    for _ in range(_ROUNDS):
        arms = {n: arm for n, search in searches.items() if (arm := search.next_arm()) is not None}
        if not arms:
            break
        for n, damage in zip(arms, measure(list(arms.values())), strict=True):
            assert damage is not None
            searches[n].add(arms[n], damage.kl_mean)


class _Tried(NamedTuple):
    """A multiple of a control's strength, and the KL there."""

    multiple: float
    kl: float


def _power(one: _Tried, other: _Tried | None = None) -> float:
    """With which power of the strength KL grows, here between two points."""
    if other is None or min(one.kl, other.kl) <= 0:
        return _QUADRATIC
    power = math.log(one.kl / other.kl) / math.log(one.multiple / other.multiple)
    return min(_LARGEST_POWER, max(_LEAST_POWER, power))


@dataclass
class _Search:
    """The search for the strength of one control."""

    control: Control
    target_kl: float
    tried: dict[float, tuple[Arm, float]] = field(default_factory=dict)
    "Arms and their KL, by the size of their strength."

    def add(self, arm: Arm, kl: float) -> None:
        """Note an arm's KL."""
        self.tried[abs(arm.strength or 0.0)] = arm, kl

    @property
    def best(self) -> Arm:
        """The arm whose KL is nearest to the target."""
        return min(self.tried.values(), key=lambda one: self._distance(one[1]))[0]

    @property
    def _has_match(self) -> bool:
        return any(damage_match(kl, self.target_kl) == "matched" for _, kl in self.tried.values())

    @property
    def rounding_kl(self) -> float | None:
        """The KL above the target that smaller strengths do not go below; None if there is none."""
        if len(self.tried) < 2 or self._has_match:
            return None
        least, next_least = self._points[:2]
        is_flat = (
            next_least.multiple >= _FLAT_STRENGTHS * least.multiple
            and next_least.kl <= _FLAT_KL * least.kl
        )
        return least.kl if is_flat and least.kl > self.target_kl else None

    def next_arm(self) -> Arm | None:
        """The arm to measure next; None if the search has ended."""
        if self._has_match:
            return None
        arm = self.control.at(self._next_multiple())
        return None if abs(arm.strength or 0.0) in self.tried else arm

    def _next_multiple(self) -> float:
        largest = self.control.largest
        if not self.tried:
            return min(1.0, largest)
        below = [point for point in self._points if point.kl < self.target_kl]
        above = [point for point in self._points if point.kl >= self.target_kl]
        if below and above:
            return self._between(below[-1], above[0])
        nearest = [*above[:1], *below][-1]
        if nearest.kl <= 0:
            return min(largest, nearest.multiple * _FURTHEST)
        others = below[:-1] or above[1:2]
        power = _power(nearest, *others[-1:])
        factor = math.pow(self.target_kl / nearest.kl, 1 / power)
        return min(largest, nearest.multiple * min(_FURTHEST, max(1 / _FURTHEST, factor)))

    @property
    def _points(self) -> list["_Tried"]:
        """What was measured, by strength."""
        start = abs(self.control.arm.strength or 1.0)
        return sorted(_Tried(size / start, kl) for size, (_, kl) in self.tried.items())

    def _between(self, low: "_Tried", high: "_Tried") -> float:
        """A multiple between one with less KL and one with more, by their logarithms."""
        share = 0.5
        if low.kl > 0:
            share = math.log(self.target_kl / low.kl) / math.log(high.kl / low.kl)
        share = min(0.9, max(0.1, share))
        return math.exp((1 - share) * math.log(low.multiple) + share * math.log(high.multiple))

    def _distance(self, kl: float) -> float:
        return abs(math.log(max(kl, LEAST_KL * 1e-3) / self.target_kl))
