"""What a reply is judged to show: by phrases in many languages, by its language, or by a function of the user's own.

A label is the name of what a reply shows, None for nothing of the kind, EMPTY for a reply without a letter or digit, or
UNSCORED where the judge cannot say. The last two are neither shown nor absent, and no rate counts them.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

from saescope.control.evaluation.languages import KNOWN, language
from saescope.errors import JudgeError, PromptError, SourceError, first_line
from saescope.sources.catalog import Feature
from saescope.sources.prompts import Prompt

EMPTY, UNSCORED = "empty", "unscored"
Label = str | None
# A user's own: the name of what the reply shows or True, None or False for nothing of the kind, or UNSCORED.
Judge = Callable[[str], str | bool | None]


@dataclass(frozen=True)
class Reply:
    """What a model wrote to a prompt: tokens and text."""

    prompt: Prompt
    ids: Sequence[int]
    text: str


@runtime_checkable
class ReplyJudge(Protocol):
    """A judge of many replies at once, which may look at their prompts and tokens."""

    def label_all(self, replies: Sequence[Reply]) -> list[Label]:
        """A label a reply, none of which is empty."""


def label_replies(judge: Judge | ReplyJudge, replies: Sequence[Reply]) -> list[Label]:
    """A label for every reply; those without a letter or digit are EMPTY, whoever judges.

    Raises JudgeError, with the reply, where a function fails or returns something that is no label.
    """
    labels: list[Label] = [EMPTY] * len(replies)
    written = [
        n for n, reply in enumerate(replies) if any(c.isalnum() for c in normalised(reply.text))
    ]
    asked = [replies[n] for n in written]
    given = (
        judge.label_all(asked)
        if isinstance(judge, ReplyJudge)
        else [_by_function(judge, r.text) for r in asked]
    )
    for n, label in zip(written, given, strict=True):
        labels[n] = label
    return labels


def shown(label: Label) -> bool | None:
    """Whether the behaviour shows; None where there is nothing to be said of the reply."""
    return None if label in (EMPTY, UNSCORED) else label is not None


def describe(judge: Judge | ReplyJudge) -> dict[str, Any]:
    """What decided, for whoever reads the result: a name, and lists where there are any."""
    own = getattr(judge, "describe", None)
    return own() if own is not None else {"name": getattr(judge, "__name__", type(judge).__name__)}


def as_label(value: Any) -> Label:
    """A label from what a judge returned; raises ValueError for anything else."""
    if value is None or value is False:
        return None
    if value is True:
        return "shown"
    if isinstance(value, str) and value:
        return value
    raise ValueError(f"{value!r} is neither a name, true nor false")


def _by_function(judge: Judge, reply: str) -> Label:
    try:
        return as_label(judge(reply))
    except Exception as error:  # a user's own code may raise anything
        name = describe(judge)["name"]
        raise JudgeError(
            f"judge {name} failed on the reply {reply[:60]!r}: {type(error).__name__}: {first_line(error)}"
        ) from error


@final
@dataclass(frozen=True)
class Phrases:
    """A behaviour told by phrases: any of them, anywhere in the reply's beginning, is enough.

    Says which phrase of which language it was, for substring lists misfire and must be seen to be believed.
    """

    name: str
    by_language: Mapping[str, Sequence[str]]
    within: int = 200

    def __call__(self, reply: str) -> Label:
        """`LANGUAGE: PHRASE` of the earliest phrase, EMPTY for a reply without a letter or digit, or None."""
        text = normalised(reply)
        if not any(c.isalnum() for c in text):
            return EMPTY
        found = [
            (text.find(normalised(phrase), 0, self.within), language, phrase)
            for language, phrases in self.by_language.items()
            for phrase in phrases
        ]
        earliest = min((hit for hit in found if hit[0] >= 0), default=None)
        return f"{earliest[1]}: {earliest[2]}" if earliest else None

    def describe(self) -> dict[str, Any]:
        """The name and the whole list."""
        return {"name": self.name, "phrases": self.by_language, "within": self.within}


@final
@dataclass(frozen=True)
class InLanguage:
    """Whether a reply is mainly in one language; UNSCORED where its language cannot be told."""

    wanted: str

    def __post_init__(self) -> None:
        if self.wanted not in KNOWN:
            raise PromptError(
                f"no behaviour 'language:{self.wanted}': languages that are known are {', '.join(KNOWN)}"
            )

    def __call__(self, reply: str) -> Label:
        """The language where it is the wanted one."""
        found = language(reply_text(reply))
        return UNSCORED if found is None else found if found == self.wanted else None

    def describe(self) -> dict[str, Any]:
        """The language."""
        return {"name": f"language:{self.wanted}", "language": self.wanted}


@dataclass(frozen=True)
class FeatureRule:
    """A reply shows the behaviour where any of the features fires on at least this share of its tokens."""

    features: tuple[Feature, ...]
    share: float = 0.5

    def __str__(self) -> str:
        return f"feature:{'+'.join(map(str, self.features))}@{self.share:g}"


def read_behaviour(name: str) -> "Phrases | InLanguage | FeatureRule":
    """A bundled behaviour by name, `language:ja`, `feature:2/412` (`@0.3` for the share), or a JSON file of phrases.

    Raises PromptError for anything else.
    """
    if name.startswith("language:"):
        return InLanguage(name.removeprefix("language:"))
    if name.startswith("feature:"):
        return _feature_rule(name)
    bundled = json.loads(
        (resources.files("saescope.control.evaluation") / "phrases.json").read_text(
            encoding="utf-8"
        )
    )
    if name in bundled:
        return Phrases(name, bundled[name])
    path = Path(name).expanduser()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(bundled)
        raise PromptError(
            f"no behaviour {name!r}: give {known}, language:CODE, feature:LAYER/ID, or a JSON file of phrases by "
            "language"
        ) from error
    except (OSError, ValueError) as error:
        raise PromptError(f"{path} is not JSON: {error}") from error
    lists = data.values() if isinstance(data, dict) else []
    if not lists or not all(
        isinstance(v, list) and v and all(isinstance(p, str) and p for p in v) for v in lists
    ):
        raise PromptError(f'{path}: phrases are given by language, as {{"en": ["i am sorry"]}}')
    return Phrases(path.stem, data)


def _feature_rule(name: str) -> FeatureRule:
    names, _, share = name.removeprefix("feature:").partition("@")
    try:
        rule = FeatureRule(
            tuple(Feature.parse(one) for one in names.split("+")), float(share or 0.5)
        )
    except (SourceError, ValueError) as error:
        raise PromptError(
            f"behaviour {name!r} is not feature:LAYER/ID or feature:LAYER/ID@SHARE: {error}"
        ) from error
    if not 0 < rule.share <= 1:
        raise PromptError(f"behaviour {name!r}: the share of tokens lies between 0 and 1")
    return rule


def reply_text(reply: str) -> str:
    """The reply after any thinking."""
    return reply.rpartition("</think>")[2]


def normalised(text: str) -> str:
    """What is compared: the reply after any thinking, in one case and width, with plain quotes and single spaces."""
    text = (
        unicodedata.normalize("NFKC", reply_text(text))
        .casefold()
        .replace("’", "'")
        .replace("`", "'")
    )
    return re.sub(r"\s+", " ", text).strip()
