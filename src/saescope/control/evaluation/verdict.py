"""What an evaluation's rows show, in words: whether an edit works, for what reason it may not, and what it costs.

The failure modes have names: capability lost, detection without control, several features needed, another mechanism;
and not specific, where a control does the same. Each is decided from measured figures alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from saescope.control.evaluation.conditions import Condition
from saescope.control.evaluation.ways import MEANS

FULL = 0.8  # of the way that a rate can go, from which on an effect is whole
MOVED = 0.5  # of an edit's effect, from which on a control has it too
HARMLESS_KL, HARMLESS_PPL = 0.1, 1.2
REPEATS, ENDS, RIGHT, LOST, FLIPS = 0.1, 0.1, 0.05, 0.1, 0.1
Name = Literal[
    "effect", "nothing applied", "nothing scored", "partial", "detection without control", "several features needed",
    "another mechanism", "not specific", "some draws", "difference of means", "prompt alone", "capability lost",
]  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that the figures show: its name, and a sentence with the figures."""

    name: Name
    text: str


@dataclass(frozen=True)
class Case:
    """The rows of an evaluation: without edits, the edits' strengths, the controls; of how many features edits are.

    `about_language` says that the behaviour is a language, so that other languages are no loss; right answers are not
    looked for on `target` sets, where replies are to change.
    """

    base: Condition
    tried: Sequence[Condition]
    controls: Sequence[Condition]
    features: str
    about_language: bool = False
    target: Sequence[str] = ()

    def moved(self, one: Condition) -> float:
        """How far a row's rate is from the unedited one; 0 where either is unknown."""
        if one.behaviour_rate is None or self.base.behaviour_rate is None:
            return 0.0
        return one.behaviour_rate - self.base.behaviour_rate

    def share(self, one: Condition, towards: float) -> float:
        """Of the way that the rate could go in this direction, the share that a row goes."""
        rate = self.base.behaviour_rate or 0.0
        room = rate if towards < 0 else 1 - rate
        return max(0.0, self.moved(one) * (-1 if towards < 0 else 1)) / room if room else 0.0

    def clear(self, one: Condition) -> bool:
        """Whether the interval is apart from the unedited one's."""
        return one.ci[1] < self.base.ci[0] or one.ci[0] > self.base.ci[1]

    def losses(self, one: Condition) -> list[str]:
        """What a row has lost against the unedited one, a clause each."""
        return [
            *_damage(one),
            *_broken(self.base, one),
            *_wrong(self.base, one, self.target),
            *self._flipped(one),
        ]

    def _flipped(self, one: Condition) -> list[str]:
        if self.about_language or one.language_flip is None or one.language_flip <= FLIPS:
            return []
        return [f"{100 * one.language_flip:.0f} % of the replies are in another language"]


def choose(case: Case) -> Condition:
    """The strength to take: with a clear effect and nothing lost, then the largest effect, then the least damage."""

    def worth(one: Condition) -> tuple[bool, bool, float, float]:
        clear = case.clear(one)
        effect = abs(case.moved(one))
        return (
            clear and not case.losses(one),
            clear,
            effect,
            -(one.damage.kl_mean if one.damage else 0.0),
        )

    return max(case.tried, key=worth)


def verdict(case: Case) -> list[Finding]:
    """What may be concluded of the chosen strength."""
    best = choose(case)
    if case.base.behaviour_rate is None or best.behaviour_rate is None:
        which = "without edits" if case.base.behaviour_rate is None else "with the edits"
        return [
            Finding("nothing scored", f"Nothing can be said: no reply {which} could be judged.")
        ]
    shown = f"from {rate(case.base)} to {rate(best)}"
    effect = (
        f"The behaviour goes {shown} with {case.features} at {best.strength:g} times the strength."
    )
    found = [Finding("effect", effect)]
    if not best.applied:
        where = "Nothing was changed: no edited feature fired. Detection and control may lie at different sites."
        return [*found, Finding("nothing applied", where)]
    found += _reason(case, best)
    found += _specific(case, best)
    found += _prompted(case, best)
    if losses := case.losses(best):
        found.append(Finding("capability lost", f"Capability is lost: {'; '.join(losses)}."))
    return found


def _reason(case: Case, best: Condition) -> list[Finding]:
    """Why an effect is not whole, as far as the difference of means can tell; what that did where the effect is."""
    towards = case.moved(best)
    if case.clear(best) and case.share(best, towards) >= FULL:
        return _means(case, towards)
    if case.clear(best):
        share = f"{100 * case.share(best, towards):.0f} %"
        found = [Finding("partial", f"The effect is partial: {share} of the way.")]
    else:
        lines = "That is no clear effect: detection without control. The features fire where the behaviour shows, "
        found = [
            Finding("detection without control", f"{lines}and changing them does not change it.")
        ]
        towards = -1.0 if (case.base.behaviour_rate or 0) >= 0.5 else 1.0
    rows = [c for c in case.controls if c.name.startswith(MEANS)]
    if not rows:
        what = "Several features may be needed, or another mechanism is at work: difference of means was not measured."
        return [*found, Finding("several features needed", what)]
    done = max(rows, key=lambda c: (_does(case, c, towards), case.share(c, towards)))
    harm = f", and loses capability ({'; '.join(case.losses(done))})" if case.losses(done) else ""
    if _does(case, done, towards):
        what = f"Several features are needed: {done.name}, at the same layer, does it whole ({rate(done)}{harm})."
        return [*found, Finding("several features needed", what)]
    rest = "the rest" if case.clear(best) else "it"
    what = (
        f"Another mechanism carries {rest}, or another layer: {done.name}, at the same layer, does not do it either "
        f"({rate(done)}{harm})."
    )
    return [*found, Finding("another mechanism", what)]


def _does(case: Case, one: Condition, towards: float) -> bool:
    """Whether a row has the whole effect: what goes may have gone with all else, what comes is not damage."""
    whole = case.clear(one) and case.share(one, towards) >= FULL
    return whole and (towards > 0 or not case.losses(one))


def _means(case: Case, towards: float) -> list[Finding]:
    """What the plain baseline did beside an edit that works."""
    rows = [c for c in case.controls if c.name.startswith(MEANS)]
    said = []
    for row in rows:
        losses = case.losses(row)
        cost = f" and loses capability ({'; '.join(losses)})" if losses else ""
        does = (
            "does it too"
            if case.share(row, towards) >= FULL and case.clear(row)
            else "does not do it"
        )
        kl = f", KL {row.damage.kl_mean:.2g}" if row.damage else ""
        said.append(f"{row.name}, {does} ({rate(row)}{kl}){cost}")
    text = "; ".join(said)
    return [Finding("difference of means", f"{text[0].upper()}{text[1:]}.")] if said else []


def _specific(case: Case, best: Condition) -> list[Finding]:
    """Controls that move the behaviour the same way, more than half as far: on average, or in half of their draws."""
    effect = case.moved(best)
    if not case.clear(best):
        return []
    same, single = [], []
    for row in case.controls:
        if row.name not in ("zero", "minus", "random feature", "random direction"):
            continue
        moves = [_move(case, one.get("behaviour_rate")) for one in row.each] or [case.moved(row)]
        far = [move for move in moves if move * effect > 0 and abs(move) > MOVED * abs(effect)]
        mean = case.moved(row)
        end = (case.base.behaviour_rate or 0.0) + max(far, key=abs, default=0.0)
        if 2 * len(far) >= len(moves) or (mean * effect > 0 and abs(mean) > MOVED * abs(effect)):
            same.append(f"{row.name} ({rate(row)})")
        elif far:
            single.append(
                f"{len(far)} of {len(moves)} draws of a {row.name} (to {100 * end:.0f} %)"
            )
    found = []
    if same:
        found.append(
            Finding(
                "not specific",
                f"It is not specific: {' and '.join(same)} moved it more than half as far.",
            )
        )
    if single:
        what = f"Not every change of this size leaves it alone: {' and '.join(single)} moved it more than half as far."
        found.append(Finding("some draws", what))
    return found


def _move(case: Case, value: float | None) -> float:
    return 0.0 if value is None else value - (case.base.behaviour_rate or 0.0)


def _prompted(case: Case, best: Condition) -> list[Finding]:
    row = next((c for c in case.controls if c.name == "prompt only"), None)
    effect = case.moved(best)
    if row is None or effect == 0 or case.share(row, effect) < FULL or not case.clear(row):
        return []
    return [
        Finding(
            "prompt alone",
            f"An instruction in the prompt does it too, without any edit ({rate(row)}).",
        )
    ]


def _damage(one: Condition) -> list[str]:
    d = one.damage
    if d is None or (d.kl_mean <= HARMLESS_KL and d.ppl_ratio <= HARMLESS_PPL):
        return []
    return [f"KL {d.kl_mean:.3g} a token on neutral text, perplexity {d.ppl_ratio:.2f} times"]


def _broken(base: Condition, one: Condition) -> list[str]:
    lines = []
    if one.repetition > base.repetition + REPEATS:
        lines.append(
            f"replies repeat themselves ({one.repetition:.2f} of trigrams, {base.repetition:.2f} before)"
        )
    if one.ended < base.ended - ENDS:
        lines.append(
            f"replies end less often ({100 * one.ended:.0f} %, {100 * base.ended:.0f} % before)"
        )
    for what in ("empty", "unscored"):
        was, now = (getattr(c, what) / max(1, c.scored + c.empty + c.unscored) for c in (base, one))
        if now > was + LOST:
            lines.append(f"{100 * now:.0f} % of the replies are {what} ({100 * was:.0f} % before)")
    return lines


def _wrong(base: Condition, one: Condition, target: Sequence[str]) -> list[str]:
    lost = [
        f"{name} ({100 * now.right_rate:.0f} %, {100 * was.right_rate:.0f} % before)"
        for name, was in base.sets.items()
        if name not in target
        and (now := one.sets[name]).right_rate is not None
        and was.right_rate is not None
        and now.right_rate < was.right_rate - RIGHT
    ]
    return [f"right answers are lost on {', '.join(lost)}"] if lost else []


def rate(c: Condition) -> str:
    """A rate with its interval."""
    if c.behaviour_rate is None:
        return "unknown"
    return f"{100 * c.behaviour_rate:.0f} % ({100 * c.ci[0]:.0f}-{100 * c.ci[1]:.0f})"
