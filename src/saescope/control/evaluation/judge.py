"""What a judge is: it gives every reply a label, which says what the reply shows."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from saescope.engine.answers import read_answer
from saescope.errors import JudgeError, SaescopeError
from saescope.sources.prompts import Prompt

EMPTY = "empty"
"Label of a reply without a letter or digit. No rate counts it."
UNSCORED = "unscored"
"Label of a reply that the judge cannot decide. No rate counts it."
UNFINISHED = "unfinished"
"Label of a reply that ends inside its thinking, before an answer. No rate counts it."
_LONGEST_LABEL = 1000
Label = str | None
"A name for what a reply shows, None if it shows nothing of the kind, or one of the three above."


@dataclass(frozen=True)
class Reply:
    """A model's reply to a prompt: token ids and text.

    Judges get the answer alone as `text`, and all `ids`. A reply is `unfinished` if it ends inside
    its thinking.

    >>> import saescope as ss
    >>> ss.judges.Reply(ss.Prompt("q-01", "questions", text="Why?"), [], "Because.").text
    'Because.'
    """

    prompt: Prompt
    ids: Sequence[int]
    text: str
    unfinished: bool = False


@runtime_checkable
class Judge(Protocol):
    """Labels replies, and may read their prompts and token ids.

    A judge may also have `describe()`, a dict with its "name", which results then show, and
    `token_ids(text)` if it reads token ids: replies with known labels are texts only.

    >>> from saescope.judges import Judge
    >>> class ShortReplies:
    ...     def label_all(self, replies):
    ...         return ["short" if len(reply.ids) < 20 else None for reply in replies]
    >>> isinstance(ShortReplies(), Judge)
    True
    """

    def label_all(self, replies: Sequence[Reply]) -> list[Label]:
        """One label per reply. Every reply has at least one letter or digit."""


def label_replies(judge: Judge, replies: Sequence[Reply]) -> list[Label]:
    """One label per reply.

    UNFINISHED for replies without an answer yet, EMPTY for answers without a letter or digit, the
    judge's for the others. The judge sees the answer alone. Raises JudgeError if the judge fails or
    returns something that is no label.
    """
    labels: list[Label] = []
    to_judge: dict[int, Reply] = {}
    for n, reply in enumerate(replies):
        answer = read_answer(reply.text)
        if reply.unfinished or answer.unfinished:
            labels.append(UNFINISHED)
            continue
        labels.append(EMPTY)
        if has_words(answer.text):
            to_judge[n] = replace(reply, text=answer.text)
    judged = _ask(judge, list(to_judge.values()))
    for n, label in zip(to_judge, judged, strict=True):
        labels[n] = label
    return labels


def _ask(judge: Judge, replies: Sequence[Reply]) -> list[Label]:
    """Return the judge's labels, one per reply; raises JudgeError for anything else."""
    try:
        judged = judge.label_all(replies)
    except (SaescopeError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the user's code may raise anything, SystemExit too
        reason = f"{type(error).__name__}: {error}"
        raise JudgeError(f"judge {_name(judge)} failed: {reason}") from error
    if not isinstance(judged, Sequence) or isinstance(judged, str) or len(judged) != len(replies):
        raise JudgeError(f"judge {_name(judge)} gave no list of {len(replies)} labels")
    try:
        return [as_label(label) for label in judged]
    except ValueError as error:
        raise JudgeError(f"judge {_name(judge)} gave no label: {error}") from error


def _name(judge: Judge) -> str:
    return type(judge).__name__


def shows_behaviour(label: Label) -> bool | None:
    """Whether the behaviour shows; None if the reply is empty, unscored or unfinished."""
    if label in (EMPTY, UNSCORED, UNFINISHED):
        return None
    return label is not None


def as_label(value: Any) -> Label:
    """A label from a judge's answer: True becomes "shown". Raises ValueError for anything else."""
    if value is None or value is False:
        return None
    if value is True:
        return "shown"
    if isinstance(value, str) and len(value) > _LONGEST_LABEL:
        raise ValueError(f"a label of {len(value):,} characters is no name")
    if isinstance(value, str) and value:
        return value
    raise ValueError(f"{value!r:.80} is neither a name, true nor false")


def describe_judge(judge: Judge) -> dict[str, Any]:
    """Return the judge's description, or its class name."""
    describe = getattr(judge, "describe", None)
    if describe is None:
        return {"name": type(judge).__name__}
    description: dict[str, Any] = describe()
    return description


def reply_text(reply: str) -> str:
    """The reply without its thinking."""
    return read_answer(reply).text


def normalised(reply: str) -> str:
    """The reply without thinking, in one case and width, with plain quotes and single spaces."""
    text = unicodedata.normalize("NFKC", reply_text(reply)).casefold()
    text = text.replace("’", "'").replace("`", "'")
    return re.sub(r"\s+", " ", text).strip()


def has_words(reply: str) -> bool:
    """Whether a reply has a letter or digit outside of its thinking."""
    return any(c.isalnum() for c in normalised(reply))
