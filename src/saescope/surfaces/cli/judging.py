"""How replies are asked for and what decides about them, for every command that measures edits."""

import json
from dataclasses import dataclass
from pathlib import Path

from cyclopts import Parameter

from saescope.control.evaluation.behaviour import FeatureRule, read_behaviour
from saescope.control.evaluation.function_judge import load_judge
from saescope.control.evaluation.http_judge import HttpJudge
from saescope.control.evaluation.judge import Judge
from saescope.errors import PromptError
from saescope.sources.prompts import Prompt, read_prompts
from saescope.store.resume_cache import ResumeCache, key_of


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Judging:
    """Who says whether a reply shows the behaviour."""

    behaviour: str | None = None
    (
        "What is looked for in replies: declining (when left out), language:ja, feature:17/23991 (with @0.3, on at "
        "least that share of a reply's tokens, else half), or a JSON file of phrases by language."
    )

    judge: str | None = None
    "Who decides instead: FILE.py:FUNCTION or MODULE:FUNCTION, given a reply, or the URL of a server."

    judge_batch: int = 1
    "Replies that a server is asked about at once."

    judge_timeout: float = 60.0
    "Seconds that a server may take to answer."

    def decider(self) -> Judge | FeatureRule:
        """What decides, as far as it is known before a model is; raises PromptError for what cannot be read."""
        if self.judge is None:
            return read_behaviour(self.behaviour or "declining")
        if self.behaviour is not None:
            both = f"--behaviour {self.behaviour} and --judge {self.judge}"
            raise PromptError(f"{both} both say what decides: give one of the two")
        if not self.judge.startswith(("http://", "https://")):
            return load_judge(self.judge)
        asked = HttpJudge(
            self.judge, self.judge_batch, self.judge_timeout
        )  # refused here, before anything is read
        kept = ResumeCache(Path("runs") / f"judged-{key_of(asked.url)[:12]}.jsonl")
        return HttpJudge(self.judge, self.judge_batch, self.judge_timeout, cache=kept)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Asking:
    """How prompts are put, and what else is measured beside the replies."""

    neutral: str = "neutral"
    "Prompt sets of plain text on which damage is measured; the bundled sentences when left out."

    answers: Path | None = None
    "A JSON file of right answers by prompt id."

    cut: float | None = None
    "Keep only this share of each prompt, up to a whole word, so that there is something to go on from."

    thinking: bool | None = None
    "Tell the chat template to think, or not to."

    def read(self) -> "Material":
        """With its files read; raises PromptError for what is in none."""
        answers = None if self.answers is None else read_answers(self.answers)
        return Material(flat_prompts(self.neutral), answers, self.cut, self.thinking)


@dataclass(frozen=True)
class Material:
    """What `Asking` names, read: neutral texts, right answers by prompt id, and how prompts are put."""

    neutral: list[Prompt]
    answers: dict[str, str] | None
    cut: float | None
    thinking: bool | None


def read_answers(path: Path) -> dict[str, str]:
    """Right answers by prompt id; raises PromptError for anything else."""
    try:
        data = json.loads(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PromptError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise PromptError(f'{path}: answers are given by prompt id, as {{"q-01": "The hill."}}')
    return data


def flat_prompts(sets: str) -> list[Prompt]:
    """The prompts of all sets."""
    return [prompt for group in read_prompts(sets) for prompt in group.prompts]
