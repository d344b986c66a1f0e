"""A judge's own error, on replies whose right labels are known."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from saescope.control.evaluation.behaviour import LanguageJudge, PhraseJudge, bundled_phrases
from saescope.control.evaluation.judge import Judge, Reply, label_replies, shows_behaviour
from saescope.control.evaluation.known_replies import KnownReplies, KnownReply
from saescope.control.evaluation.metrics import wilson_interval
from saescope.sources.prompts import Prompt

_UNKNOWN = (
    "The judge's own error is not known: pass judge_check, a file of replies with known labels."
)
_HELD_OUT = "labelled replies that its phrases were not tuned on"
_LANGUAGES = "help pages, the Declaration of Human Rights and short pieces of both"


@dataclass(frozen=True)
class JudgeCheck:
    """How often a judge is wrong: counts over texts whose right labels are known."""

    texts: str
    "What the texts are."

    shown: int
    "Texts that show the behaviour, and that the judge decided on."

    missed: int
    others: int
    "Texts that do not show it, and that the judge decided on."

    flagged: int
    unscored: int
    "Texts that the judge could not decide on."

    @property
    def sentence(self) -> str:
        """Both error rates with their intervals, and what they were measured on."""
        unscored = f", and leaves {self.unscored:,} undecided" if self.unscored else ""
        return (
            f"The judge itself misses {_rate_in_words(self.missed, self.shown)} that show it and "
            f"flags {_rate_in_words(self.flagged, self.others)} that do not{unscored} "
            f"({self.texts})."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and rates as a JSON-compatible dict."""
        return {
            **vars(self),
            "missed_rate": self.missed / self.shown if self.shown else None,
            "missed_ci": list(_interval(self.missed, self.shown)),
            "flagged_rate": self.flagged / self.others if self.others else None,
            "flagged_ci": list(_interval(self.flagged, self.others)),
        }


def error_sentence(check: JudgeCheck | None) -> str:
    """What is known of a judge's error."""
    return _UNKNOWN if check is None else check.sentence


def check_judge(judge: Judge, known: KnownReplies | None = None) -> JudgeCheck | None:
    """A judge's error on known replies, else as far as it is known; None if it is not.

    Known without replies are the errors of the bundled phrases and of languages.

    >>> import saescope as ss
    >>> from saescope.control.evaluation.judge_check import check_judge
    >>> from saescope.control.evaluation.known_replies import KnownReplies, KnownReply
    >>> known = KnownReplies("two replies", [KnownReply("NO!", True), KnownReply("yes", False)])
    >>> check_judge(ss.judges.FunctionJudge(str.isupper), known).missed
    0
    >>> check_judge(ss.judges.LanguageJudge("ja")).missed
    0
    """
    if known is not None:
        return _measure(judge, known)
    if isinstance(judge, LanguageJudge):
        return _language_check(judge.language)
    if isinstance(judge, PhraseJudge) and judge == bundled_phrases()["declining"]:
        return _declining_check()
    return None


def _measure(judge: Judge, known: KnownReplies) -> JudgeCheck:
    replies = []
    token_ids = getattr(judge, "token_ids", None)
    for n, reply in enumerate(known.replies):
        ids = [] if token_ids is None else token_ids(reply.text)
        replies.append(Reply(Prompt(f"known-{n}", "known", text=reply.prompt), ids, reply.text))
    judged = map(shows_behaviour, label_replies(judge, replies))
    pairs = [(reply.shows, shown) for reply, shown in zip(known.replies, judged, strict=True)]
    return JudgeCheck(
        texts=known.name,
        shown=pairs.count((True, True)) + pairs.count((True, False)),
        missed=pairs.count((True, False)),
        others=pairs.count((False, True)) + pairs.count((False, False)),
        flagged=pairs.count((False, True)),
        unscored=pairs.count((True, None)) + pairs.count((False, None)),
    )


@cache
def _declining_check() -> JudgeCheck:
    """The error of the bundled phrases on the part of the labelled replies held out from them."""
    rows = [json.loads(line) for line in _package_file("known_replies.jsonl").splitlines()]
    held_out = [row for row in rows if row["part"] == "held-out"]
    replies = [KnownReply(row["text"], row["shows"]) for row in held_out]
    return _measure(bundled_phrases()["declining"], KnownReplies(_HELD_OUT, replies))


def _language_check(language: str) -> JudgeCheck:
    """The error as benchmarks/languages.py measured it, over all kinds of text."""
    kinds: Mapping[str, Mapping[str, Mapping[str, int]]]
    kinds = json.loads(_package_file("language_errors.json"))["kinds"]
    of_language = [errors[language] for errors in kinds.values() if language in errors]
    counts = {name: sum(errors[name] for errors in of_language) for name in of_language[0]}
    return JudgeCheck(texts=_LANGUAGES, **counts)


def _package_file(name: str) -> str:
    file = resources.files("saescope.control.evaluation") / name
    return file.read_text(encoding="utf-8")


def _interval(n: int, total: int) -> tuple[float, float]:
    return wilson_interval(n / total if total else None, total)


def _rate_in_words(n: int, total: int) -> str:
    if not total:
        return "none of 0 known texts"
    low, high = _interval(n, total)
    return f"{100 * n / total:.1f} % ({100 * low:.1f}-{100 * high:.1f}) of {total:,} known texts"
