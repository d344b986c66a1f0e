"""How replies are judged and what they are compared with, for every request that measures edits."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saescope.arguments import Count, Part, Seconds
from saescope.control.evaluation.behaviour import FeatureRule, read_behaviour
from saescope.control.evaluation.function_judge import load_judge
from saescope.control.evaluation.http_judge import HttpJudge
from saescope.control.evaluation.judge import Judge
from saescope.control.evaluation.known_replies import KnownReplies, read_known_replies
from saescope.errors import Interrupted, PromptError
from saescope.jobs.reporter import Advance, Reporter
from saescope.sources.known_answers import known_answers, read_answers
from saescope.sources.prompt_sets import read_prompts
from saescope.sources.prompts import Prompt
from saescope.store.resume_cache import ResumeCache, key_of

if TYPE_CHECKING:
    from saescope.engine.lm import LM
    from saescope.engine.sae import Sae


@dataclass(frozen=True, kw_only=True)
class JudgeInputs:
    """Who decides whether a reply shows the behaviour."""

    behaviour: str | None = None
    (
        "What to look for in replies: declining, language:ja, feature:17/23991 (with @0.3: on at "
        "least that share of the reply's tokens, default half), or a JSON file of phrases by "
        "language. Default: declining."
    )

    judge: str | None = None
    "Another judge: FILE.py:FUNCTION or MODULE:FUNCTION, called with a reply, or a server's URL."

    judge_batch: Count = 1
    "Number of replies sent to the server at once."

    judge_timeout: Seconds = 60.0
    "Seconds the server, or a function for one reply, may take to answer."

    judge_check: Path | None = None
    (
        "JSONL file of replies with known labels, on which the judge's own error is measured: "
        '{"text": "…", "shows": true}.'
    )

    def read_known(self) -> KnownReplies | None:
        """Return the replies with known labels; raises PromptError if they cannot be read."""
        if self.judge_check is None:
            return None
        return read_known_replies(self.judge_check.expanduser())

    def read(self) -> Judge | FeatureRule:
        """Return the judge, as far as it is known without a model.

        Raises PromptError or JudgeError if it cannot be read.
        """
        if self.judge is None:
            return read_behaviour(self.behaviour or "declining")
        if self.behaviour is not None:
            both = f"behaviour={self.behaviour} and judge={self.judge}"
            raise PromptError(f"{both} both decide about replies: give one of the two")
        if not self.judge.startswith(("http://", "https://")):
            return load_judge(self.judge, self.judge_timeout)
        # A bad URL is refused here, before a cache file is opened for it.
        server = HttpJudge(self.judge, self.judge_batch, self.judge_timeout)
        cache = ResumeCache(Path("runs") / f"judged-{key_of(server.url)[:12]}.jsonl")
        return HttpJudge(self.judge, self.judge_batch, self.judge_timeout, cache=cache)


@contextmanager
def keeping_arms(
    reporter: Reporter, label: str, task: str, cache: ResumeCache
) -> Iterator[Advance]:
    """Follow replies to prompts; raises Interrupted with how many arms the cache keeps.

    Another process that needs the same arms waits, and finds them in the cache.
    """
    with cache.alone(reporter.note), reporter.progress(label, "replies", task) as advance:
        try:
            yield advance
        except KeyboardInterrupt as error:
            n = len(cache)
            noun = "condition" if n == 1 else "conditions"
            kept = f"{n} finished {noun} kept" if n else "nothing is finished yet"
            raise Interrupted(kept) from error


def bind_judge(
    judge: Judge | FeatureRule, lm: "LM", saes: "Sequence[Sae]", thinking: bool | None
) -> Judge:
    """Give a rule about features the model it reads replies with; other judges need none."""
    if not isinstance(judge, FeatureRule):
        return judge
    from saescope.control.evaluation.feature_judge import FeatureJudge

    return FeatureJudge(lm, saes, judge, thinking)


@dataclass(frozen=True, kw_only=True)
class ReplyInputs:
    """What replies are measured beside, and how prompts are shortened."""

    neutral: str = "neutral"
    "Prompt sets of plain text to measure damage on. Default: the bundled sentences."

    answers: Path | None = None
    (
        "JSON file with the right answers by prompt id. Default: answers.json beside the prompts, "
        "if there is one; bundled prompts have theirs."
    )

    cut: Part | None = None
    "Keep only this share of each prompt, up to a whole word, so there is something to continue."

    def read_neutral(self) -> list[Prompt]:
        """Read the neutral texts."""
        return read_all_prompts(self.neutral)

    def check_answers(self) -> None:
        """Raise PromptError for a file of answers that holds anything else."""
        if self.answers is not None:
            read_answers(self.answers)

    def answers_of(self, prompts: Sequence[Prompt], sets: str | None) -> dict[str, str] | None:
        """Return the right answers of prompts, read from `sets`; None if none is known.

        Default: those that come with the sets, unless prompts are cut: then replies continue them.
        """
        if self.answers is not None:
            return read_answers(self.answers)
        if self.cut is not None:
            return None
        return known_answers(prompts, sets) or None


def read_all_prompts(sets: str) -> list[Prompt]:
    """Read the prompts of all sets."""
    return [prompt for prompt_set in read_prompts(sets) for prompt in prompt_set.prompts]
