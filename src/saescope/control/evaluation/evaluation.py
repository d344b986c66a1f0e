"""The result of `evaluate`."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, final

from saescope.control.evaluation.arm_results import ArmResult
from saescope.control.evaluation.evidence import Finding
from saescope.control.evaluation.judge import Label
from saescope.control.evaluation.judge_check import JudgeCheck
from saescope.control.evaluation.matching import TOLERANCE, WRECKED_FACTOR, WRECKED_KL
from saescope.control.evaluation.settings import ControlStrength
from saescope.sources.prompts import Prompt
from saescope.table import Table

_NESTED = ("sets", "kl_sets", "languages", "each", "spread", "ci")


@final
@dataclass(frozen=True, repr=False)
class Evaluation(Table):
    """What edits do: results of the unedited arm, the edits' strengths, and the controls."""

    shown = "name strength behaviour_rate ci_low ci_high kl_mean match mcnemar_p"

    behaviour: dict[str, Any]
    "The judge's description."

    target: list[str]
    arms: list[ArmResult]
    chosen: ArmResult
    "The strength that does most without harm."

    findings: list[Finding]
    replies: dict[str, list[str]]
    "A reply per prompt, by the arm's title."

    labels: dict[str, list[Label]]
    "A label per prompt, by the arm's title."

    prompts: list[Prompt]
    neutral_tokens: int
    controls_left_out: list[str]
    "Controls that were not measured, and what they need."

    judge_error: JudgeCheck | None = None
    "How often the judge is wrong; None if that is not known."

    quick: bool = False
    "Whether only a sample of the prompts and texts was measured."

    controls: ControlStrength = "same-strength"
    "What the controls have in common with the chosen strength."

    @property
    def n_prompts(self) -> dict[str, int]:
        """Number of prompts by set."""
        return dict(Counter(prompt.set for prompt in self.prompts))

    @property
    def verdict(self) -> list[str]:
        """What may be concluded, one sentence per finding."""
        return [finding.text for finding in self.findings]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-compatible dict that `saescope evaluate --json` prints."""
        return {
            "behaviour": self.behaviour,
            "judge_error": None if self.judge_error is None else self.judge_error.to_dict(),
            "target": self.target,
            "conditions": [arm.to_dict() for arm in self.arms],
            "chosen": {"name": self.chosen.name, "strength": self.chosen.strength},
            "neutral_tokens": self.neutral_tokens,
            "quick": self.quick,
            "n_prompts": self.n_prompts,
            "verdict": " ".join(self.verdict),
            "findings": [vars(finding) for finding in self.findings],
            "controls": {
                "at": self.controls,
                "kl_mean": self.chosen.kl_mean,
                "tolerance": TOLERANCE,
                "wrecked_above": {"kl_mean": WRECKED_KL, "factor": WRECKED_FACTOR},
            },
            "controls_left_out": self.controls_left_out,
            "replies": [self._replies(n) for n in range(len(self.prompts))],
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per arm."""
        return [_row(arm) for arm in self.arms]

    def _replies(self, n: int) -> dict[str, Any]:
        """Every arm's reply to one prompt."""
        prompt = self.prompts[n]
        return {
            "id": prompt.id,
            "set": prompt.set,
            "prompt": prompt.display_text,
            "by": {title: texts[n] for title, texts in self.replies.items()},
            "labels": {title: labels[n] for title, labels in self.labels.items()},
        }


def _row(arm: ArmResult) -> dict[str, Any]:
    plain = {name: value for name, value in arm.to_dict().items() if name not in _NESTED}
    low, high = arm.ci
    return {**plain, "ci_low": low, "ci_high": high}
