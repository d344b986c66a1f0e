"""Settings of `evaluate` and `select`, and the data that both read beside prompts. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from saescope.arguments import Count, CountOrZero, Seed, Strength, check_arguments
from saescope.control.edits import Op
from saescope.control.evaluation.known_replies import KnownReplies
from saescope.errors import ArgumentError
from saescope.sources.neutral_mean import NeutralMean
from saescope.sources.prompts import Prompt

Goal = Literal["suppress", "amplify"]
ControlStrength = Literal["same-damage", "same-strength"]
_OPS: Mapping[Goal, Op] = {"suppress": "scale", "amplify": "add"}
_STRENGTHS: Mapping[Goal, tuple[float, ...]] = {
    "suppress": (-1.0, -2.0, -3.0),
    "amplify": (0.5, 1.0, 2.0),
}
# What `quick` tries at most: enough for intervals of a whole effect and of none not to overlap.
QUICK_CANDIDATES, QUICK_SELECT_PROMPTS = 6, 8
QUICK_TARGET_PROMPTS, QUICK_OTHER_PROMPTS, QUICK_TEXTS, QUICK_DRAWS = 12, 6, 32, 1


@dataclass(frozen=True)
class EvaluateSettings:
    """How edits are evaluated: on which sets, at which strengths, beside how many controls.

    >>> import saescope as ss
    >>> ss.EvaluateSettings(sweep=(0.5, 1.0, 2.0), draws=5).check()
    """

    target: tuple[str, ...] | None = None
    "Prompt sets that show the behaviour; the others are measured beside them. Default: all sets."

    sweep: tuple[Strength, ...] = (1.0,)
    "Multiples of the edits' strengths to try."

    draws: CountOrZero = 3
    "Draws of each random control."

    controls: ControlStrength = "same-damage"
    (
        "Strength of the controls: same-damage (each where its KL on neutral text equals that of "
        "the edits) or same-strength (that of the edits)."
    )

    instruction: str | None = None
    "Instruction for the prompt-only control. Default: that control is not measured."

    max_new_tokens: Count = 48
    "Maximum number of tokens per reply."

    thinking: bool | None = None
    "Tell the chat template to think, or not to. Default: the template's own."

    seed: Seed = 0
    "Sampling seed of the random controls."

    quick: bool = False
    (
        "Measure a sample, for a first look: 12 prompts per target set, 6 of each other set, 32 "
        "neutral texts and one draw of each random control. The result says so."
    )

    def check(self) -> None:
        """Raises ArgumentError for a value that no evaluation can use."""
        check_arguments(self)
        if not self.strengths:
            raise ArgumentError("sweep", "has no strength that edits anything: give one besides 0")

    @property
    def sampled(self) -> "EvaluateSettings":
        """These settings, with fewer draws if quick."""
        return replace(self, draws=min(self.draws, QUICK_DRAWS)) if self.quick else self

    @property
    def strengths(self) -> list[float]:
        """The strengths of the sweep that edit anything, each once."""
        return [float(strength) for strength in dict.fromkeys(self.sweep) if strength]


@dataclass(frozen=True)
class SelectSettings:
    """How features are selected: how many, from how many candidates, at which strengths.

    >>> import saescope as ss
    >>> ss.SelectSettings(max_features=2, strengths=(-1.0, -3.0)).check()
    """

    max_features: Count = 5
    "Maximum number of features."

    candidates: Count = 12
    "Number of detected features to try, best detectors first."

    goal: Goal = "suppress"
    "Suppress the behaviour on target prompts, or amplify it on the others."

    op: Op | None = None
    "How features are edited. Default: scale to suppress, add to amplify."

    strengths: tuple[Strength, ...] | None = None
    (
        "Strengths to try; for add, multiples of the feature's largest activation. "
        "Default: -1,-2,-3 to suppress, 0.5,1,2 to amplify."
    )

    prompts: Count = 16
    "Number of prompts to choose on, of prompts to judge on, and of neutral texts."

    max_new_tokens: Count = 32
    "Maximum number of tokens per reply."

    seed: Seed = 0
    "Seed of the held-out split, and of which prompts are chosen on."

    thinking: bool | None = None
    "Tell the chat template to think, or not to. Default: the template's own."

    quick: bool = False
    (
        "Try less, for a first look: the 6 best detectors at the first and the last strength, on "
        "8 prompts. The result says so."
    )

    def check(self) -> None:
        """Raises ArgumentError for a value that no selection can use."""
        check_arguments(self)
        if not self.edit_strengths or not all(self.edit_strengths):
            raise ArgumentError("strengths", "must be numbers other than 0, such as -1,-2")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-compatible dict that `saescope select --json` prints as `settings`."""
        plain = {name: value for name, value in vars(self).items() if name != "thinking"}
        return {**plain, "op": self.edit_op, "strengths": list(self.edit_strengths)}

    @property
    def edit_op(self) -> Op:
        """How features are edited."""
        return self.op or _OPS[self.goal]

    @property
    def edit_strengths(self) -> tuple[float, ...]:
        """The strengths to try."""
        return _STRENGTHS[self.goal] if self.strengths is None else self.strengths

    @property
    def sampled(self) -> "SelectSettings":
        """These settings, with less to try if quick."""
        if not self.quick:
            return self
        strengths = self.edit_strengths
        return replace(
            self,
            candidates=min(self.candidates, QUICK_CANDIDATES),
            prompts=min(self.prompts, QUICK_SELECT_PROMPTS),
            strengths=tuple(dict.fromkeys((*strengths[:1], *strengths[-1:]))),
        )


@dataclass(frozen=True)
class ReferenceData:
    """What edits are measured against, beside the prompts themselves.

    >>> import saescope as ss
    >>> neutral = ss.texts(["The hill is behind the house."], "neutral")[0]
    >>> reference = ss.ReferenceData(neutral.prompts, answers={"q-01": "The hill."})
    """

    neutral: Sequence[Prompt] = ()
    "Texts on which damage is measured. Those of target sets are left out."

    answers: Mapping[str, str] | None = None
    "Right answers by prompt id; case and spaces do not matter."

    discovery: Sequence[Prompt] = ()
    "Prompts that define the difference-of-means control: of target sets and of others."

    known_replies: KnownReplies | None = None
    "Replies with known labels, on which the judge's own error is measured."

    means: Mapping[int, NeutralMean] | None = None
    (
        "Mean residuals by layer, about which baselines remove a direction. None: measured on "
        "`neutral`, or on the bundled sentences if that is empty. Empty: about zero."
    )
