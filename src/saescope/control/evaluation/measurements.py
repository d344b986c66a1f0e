"""Measures arms one after another: replies, labels, figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from saescope.control.evaluation.arm_results import ArmResult
from saescope.control.evaluation.arms import Arm
from saescope.control.evaluation.judge import Judge, Label, Reply, label_replies
from saescope.control.evaluation.runner import ArmOutput, ArmRunner
from saescope.control.evaluation.scoring import EvalSet, JudgedReply, score


@dataclass
class Measurements:
    """Results of the arms measured so far, with their replies and labels. The first is unedited."""

    runner: ArmRunner
    eval_set: EvalSet
    judge: Judge
    replies: dict[str, list[str]] = field(default_factory=dict)
    "Texts by the arm's title."
    labels: dict[str, list[Label]] = field(default_factory=dict)
    "Labels by the arm's title."
    baseline: list[JudgedReply] | None = None
    "Replies without edits."

    def add(self, arms: Sequence[Arm]) -> list[ArmResult]:
        """One result per arm."""
        outputs = self.runner.run(arms)
        return [self._result(arm, output) for arm, output in zip(arms, outputs, strict=True)]

    def _result(self, arm: Arm, output: ArmOutput) -> ArmResult:
        labels = self._labels(arm, output)
        replies = [
            JudgedReply(prompt, generation, label)
            for prompt, generation, label in zip(
                self.eval_set.prompts, output.replies, labels, strict=True
            )
        ]
        result = score(arm, self.eval_set, output, replies, self.baseline)
        if self.baseline is None:
            self.baseline = replies
        self.replies[arm.title] = [generation.text for generation in output.replies]
        self.labels[arm.title] = labels
        return result

    def _labels(self, arm: Arm, output: ArmOutput) -> list[Label]:
        """A label per reply. The judge sees prompts as the arm puts them."""
        prompts = arm.prompts(self.runner.lm, self.eval_set.prompts)
        replies = [
            Reply(prompt, generation.ids, generation.answer, generation.unfinished)
            for prompt, generation in zip(prompts, output.replies, strict=True)
        ]
        return label_replies(self.judge, replies)
