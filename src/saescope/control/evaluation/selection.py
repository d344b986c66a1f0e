"""The result of `select`."""

from dataclasses import dataclass
from typing import Any, final

from saescope.analysis.detection import DetectedFeature
from saescope.control.edits import Edit
from saescope.control.evaluation.arm_results import ArmResult
from saescope.control.evaluation.judge_check import JudgeCheck
from saescope.control.evaluation.output_score import OutputScore
from saescope.control.evaluation.settings import SelectSettings
from saescope.sources.catalog import Feature
from saescope.table import Table


@dataclass(frozen=True)
class Candidate:
    """One feature by three measures: as a detector, by its output score, by its measured effect."""

    feature: Feature
    detected: DetectedFeature
    detect_rank: int
    output: OutputScore
    output_rank: int
    strength: float
    "The best of the strengths tried."

    result: ArmResult
    "The feature's edit alone, at that strength."

    effect: float
    "Share of the largest possible change of the behaviour's rate."

    effect_rank: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        damage = self.result.damage
        return {
            "feature": str(self.feature),
            "detect_rank": self.detect_rank,
            "prompt_rate": self.detected.prompt_rate,
            "prompt_other_rate": self.detected.prompt_other_rate,
            "monolinguality": self.detected.monolinguality,
            "output_rank": self.output_rank,
            "output_score": self.output.score,
            "output_probability": self.output.probability,
            "output_token_rank": self.output.rank,
            "tokens": self.output.tokens,
            "effect_rank": self.effect_rank,
            "effect": self.effect,
            "strength": self.strength,
            "behaviour_rate": self.result.behaviour_rate,
            "right_rate": self.result.right_rate,
            "kl_mean": None if damage is None else damage.kl_mean,
        }


@dataclass(frozen=True)
class Step:
    """A set of edits, of one feature more than the step before."""

    edits: tuple[Edit, ...]
    chosen_on: ArmResult
    "On the prompts that features and strengths are chosen on."

    judged_on: ArmResult
    "On the other discovery prompts."

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        edits = [f"{edit.name} {edit.op} {edit.amount:g}" for edit in self.edits]
        return {"edits": edits, **self.results()}

    def results(self) -> dict[str, Any]:
        """Return both results as a JSON-compatible dict."""
        return {"chosen_on": self.chosen_on.to_dict(), "judged_on": self.judged_on.to_dict()}


@final
@dataclass(frozen=True, repr=False)
class Selection(Table):
    """Which features to edit: candidates by effect, and the greedy set step by step."""

    shown = "feature strength effect effect_rank detect_rank output_rank prompt_rate output_score"

    target: str
    behaviour: dict[str, Any]
    "The judge's description."

    settings: SelectSettings
    candidates: list[Candidate]
    unedited: Step
    "The step without edits."

    steps: list[Step]
    "Empty if no candidate has an effect."

    n_chosen_on: int
    "Number of prompts to choose on."

    n_judged_on: int
    "Number of prompts to judge on."

    judge_error: JudgeCheck | None = None
    "How often the judge is wrong; None if that is not known."

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The selected edits; empty if no candidate has an effect."""
        return self.steps[-1].edits if self.steps else ()

    def to_dict(self) -> dict[str, Any]:
        """Return the dict that `saescope select --json` prints, without the paths."""
        return {
            "target": self.target,
            "behaviour": self.behaviour,
            "judge_error": None if self.judge_error is None else self.judge_error.to_dict(),
            "settings": self.settings.to_dict(),
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "prompts": {"chosen_on": self.n_chosen_on, "judged_on": self.n_judged_on},
            "base": self.unedited.results(),
            "steps": [step.to_dict() for step in self.steps],
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per candidate."""
        rows = [candidate.to_dict() for candidate in self.candidates]
        for row in rows:
            del row["tokens"]
        return rows
