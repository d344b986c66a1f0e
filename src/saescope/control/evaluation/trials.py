"""Sets of edits, tried on one part of the prompts of a selection."""

from collections.abc import Sequence
from dataclasses import dataclass

from saescope.control.edits import Edit
from saescope.control.evaluation.arm_results import ArmResult
from saescope.control.evaluation.arms import Arm
from saescope.control.evaluation.behaviour import LanguageJudge
from saescope.control.evaluation.effects import Baseline
from saescope.control.evaluation.judge import Judge
from saescope.control.evaluation.measurements import Measurements
from saescope.control.evaluation.runner import ArmRunner
from saescope.control.evaluation.scoring import EvalSet
from saescope.control.evaluation.settings import Goal, ReferenceData, SelectSettings
from saescope.sources.prompts import Prompt


@dataclass(frozen=True)
class Trial:
    """A set of edits, and what it did."""

    edits: tuple[Edit, ...]
    result: ArmResult
    effect: float
    "Share of the largest possible change towards the goal."

    worth: float
    "The effect, to suppress as far as answers are right: a reply may be nonsense instead."

    clean: bool
    "Whether the effect is clear and nothing is lost."

    @property
    def gain(self) -> tuple[bool, float, float]:
        """What a further feature has to increase."""
        return self.clean, self.worth, self.effect

    @property
    def merit(self) -> tuple[bool, float, float, float]:
        """Larger is better: clean, then worth, then the effect alone, then less KL."""
        kl = self.result.damage.kl_mean if self.result.damage else 0.0
        return self.clean, self.worth, self.effect, -kl


@dataclass(frozen=True)
class Trials:
    """Tries edits on one part of the prompts, against the replies without edits."""

    measurements: Measurements
    baseline: Baseline
    settings: SelectSettings

    @property
    def prompts(self) -> Sequence[Prompt]:
        """This part's prompts."""
        return self.measurements.eval_set.prompts

    @classmethod
    def start(cls, runner: ArmRunner, judge: Judge, reference: ReferenceData) -> "Trials":
        """Measures the runner's prompts without edits."""
        assert isinstance(runner.settings, SelectSettings)
        sets = [prompt.set for prompt in runner.prompts]
        eval_set = EvalSet(runner.prompts, sets, reference.answers or {})
        measurements = Measurements(runner, eval_set, judge)
        [unedited] = measurements.add([Arm("none")])
        baseline = Baseline(unedited, isinstance(judge, LanguageJudge))
        return cls(measurements, baseline, runner.settings)

    def run(self, edit_sets: Sequence[tuple[Edit, ...]]) -> list[Trial]:
        """One trial per set of edits."""
        arms = [Arm("edits", edits=edits, draw=f"#{n}") for n, edits in enumerate(edit_sets)]
        results = self.measurements.add(arms)
        return [self._trial(edits, one) for edits, one in zip(edit_sets, results, strict=True)]

    def _trial(self, edits: tuple[Edit, ...], result: ArmResult) -> Trial:
        direction = -1.0 if self.settings.goal == "suppress" else 1.0
        effect = self.baseline.effect(result, direction)
        clean = self.baseline.is_clear(result) and not self.baseline.losses(result)
        worth = worth_of(effect, result.right_rate, self.settings.goal)
        return Trial(edits, result, effect, worth, clean)


def worth_of(effect: float, right_rate: float | None, goal: Goal) -> float:
    """The effect; to suppress, as far as answers are right: a reply may be nonsense instead."""
    if goal == "amplify" or right_rate is None:
        return effect
    return effect * right_rate
