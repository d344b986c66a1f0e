"""Behaviours by name: phrases, the language of a reply, or features that fire in it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, final

from saescope.control.evaluation.judge import (
    EMPTY,
    UNFINISHED,
    UNSCORED,
    Label,
    Reply,
    has_words,
    normalised,
    reply_text,
)
from saescope.control.evaluation.languages import KNOWN_LANGUAGES, detect_language
from saescope.engine.answers import read_answer
from saescope.errors import PromptError, SourceError
from saescope.sources.catalog import Feature
from saescope.sources.mistaken import refuse_folder
from saescope.sources.regular_files import read_json

_QUOTE = re.compile('"[^"]*"|“[^”]*”|„[^“”]*[“”]|«[^»]*»|「[^」]*」|『[^』]*』')


def read_behaviour(name: str) -> "PhraseJudge | LanguageJudge | FeatureRule":
    """The behaviour of this name.

    `name` is a bundled behaviour (`declining`), `language:ja`, `feature:2/412` (`feature:2/412@0.3`
    sets the share of tokens), or a JSON file of phrases by language. A FeatureRule needs a model:
    make a FeatureJudge of it. Raises PromptError if `name` is none of these.

    >>> import saescope as ss
    >>> judge = ss.judges.read_behaviour("declining")
    >>> judge.label("I am sorry, but I cannot talk about that.")
    'en: i am sorry'
    >>> print(judge.label("The hill is behind the house."))
    None
    """
    if name.startswith("language:"):
        return LanguageJudge(name.removeprefix("language:"))
    if name.startswith("feature:"):
        return _read_feature_rule(name)
    bundled = bundled_phrases()
    if name in bundled:
        return bundled[name]
    return _read_phrases(name, bundled)


@final
@dataclass(frozen=True)
class PhraseJudge:
    """Labels a reply by its first phrase, in the form `LANGUAGE: PHRASE`.

    The label names the phrase, because lists of phrases match by mistake and have to be inspected.

    >>> from saescope.judges import PhraseJudge
    >>> PhraseJudge("pirate", {"en": ["arr", "ahoy"]}).label("Ahoy, matey!")
    'en: ahoy'
    """

    name: str
    by_language: Mapping[str, Sequence[str]]
    "Phrases by language; case, width and spaces do not matter."
    within: int = 200
    "Search only this many characters of the reply."
    exceptions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    "Longer phrases by language in which no phrase counts, such as `i can't wait`."
    quoted: bool = True
    "Also search what the reply quotes. A reply that is one quote is searched too."

    def label(self, text: str) -> Label:
        """`LANGUAGE: PHRASE` of the earliest phrase, None, or EMPTY or UNFINISHED."""
        if read_answer(text).unfinished:
            return UNFINISHED
        if not has_words(text):
            return EMPTY
        matches = list(self._matches(self._searched(normalised(text))))
        if not matches:
            return None
        _, language, phrase = min(matches)
        return f"{language}: {phrase}"

    def __call__(self, text: str) -> Label:
        """Return `label(text)`."""
        return self.label(text)

    def _searched(self, reply: str) -> str:
        """The reply without exceptions and quotes: blanked, so that positions stay."""
        for phrases in self.exceptions.values():
            for phrase in phrases:
                phrase = _normalised_phrase(phrase)
                reply = reply.replace(phrase, " " * len(phrase))
        if self.quoted or _QUOTE.fullmatch(reply):
            return reply
        return _QUOTE.sub(lambda quote: " " * len(quote[0]), reply)

    def _matches(self, reply: str) -> Iterator[tuple[int, str, str]]:
        """Position, language and text of every phrase in the reply's beginning."""
        for language, phrases in self.by_language.items():
            for phrase in phrases:
                position = reply.find(_normalised_phrase(phrase), 0, self.within)
                if position >= 0:
                    yield position, language, phrase

    def label_all(self, replies: Sequence[Reply]) -> list[Label]:
        """One label per reply."""
        return [self.label(reply.text) for reply in replies]

    def describe(self) -> dict[str, Any]:
        """The name and all phrases."""
        return {
            "name": self.name,
            "phrases": self.by_language,
            "exceptions": self.exceptions,
            "within": self.within,
        }


@lru_cache(maxsize=4096)
def _normalised_phrase(phrase: str) -> str:
    """The normalised phrase, remembered: each is searched for in every reply."""
    return normalised(phrase)


@final
@dataclass(frozen=True)
class LanguageJudge:
    """Labels replies that are mainly in one language; UNSCORED if the language cannot be told.

    >>> from saescope.judges import LanguageJudge
    >>> LanguageJudge("ja").label("丘があります。"), LanguageJudge("ja").label("42")
    ('ja', 'unscored')
    """

    language: str
    "A code such as `ja`, one of KNOWN_LANGUAGES."

    def __post_init__(self) -> None:
        if self.language not in KNOWN_LANGUAGES:
            known = ", ".join(KNOWN_LANGUAGES)
            raise PromptError(
                f"no behaviour 'language:{self.language}': known languages are {known}"
            )

    def label(self, text: str) -> Label:
        """The language if the text is in it, None, or UNSCORED if it cannot be told."""
        if read_answer(text).unfinished:
            return UNFINISHED
        detected = detect_language(reply_text(text))
        if detected is None:
            return UNSCORED
        return detected if detected == self.language else None

    def label_all(self, replies: Sequence[Reply]) -> list[Label]:
        """One label per reply."""
        return [self.label(reply.text) for reply in replies]

    def describe(self) -> dict[str, Any]:
        """The language."""
        return {"name": f"language:{self.language}", "language": self.language}


@dataclass(frozen=True)
class FeatureRule:
    """A reply shows the behaviour if any of the features fires on at least this share of tokens.

    >>> from saescope.judges import read_behaviour
    >>> read_behaviour("feature:2/412+2/7@0.3")
    FeatureRule(features=(Feature(layer=2, id=412), Feature(layer=2, id=7)), share=0.3)
    """

    features: tuple[Feature, ...]
    share: float = 0.5

    def __str__(self) -> str:
        return f"feature:{'+'.join(map(str, self.features))}@{self.share:g}"


def _read_feature_rule(name: str) -> FeatureRule:
    feature_names, _, share = name.removeprefix("feature:").partition("@")
    try:
        features = tuple(Feature.parse(feature) for feature in feature_names.split("+"))
        rule = FeatureRule(features, float(share or 0.5))
    except (SourceError, ValueError) as error:
        raise PromptError(
            f"behaviour {name!r} is not feature:LAYER/ID or feature:LAYER/ID@SHARE: {error}"
        ) from error
    if not 0 < rule.share <= 1:
        raise PromptError(f"behaviour {name!r}: the share of tokens must lie between 0 and 1")
    return rule


def bundled_phrases() -> dict[str, PhraseJudge]:
    """The judge of every bundled behaviour."""
    file = resources.files("saescope.control.evaluation") / "phrases.json"
    bundled = json.loads(file.read_text(encoding="utf-8"))
    return {
        name: PhraseJudge(name, lists["phrases"], exceptions=lists["exceptions"], quoted=False)
        for name, lists in bundled.items()
    }


def _read_phrases(name: str, bundled: Mapping[str, Any]) -> PhraseJudge:
    """A judge by the phrases in a JSON file."""
    path = Path(name).expanduser()
    refuse_folder(path, PromptError, "a JSON file of phrases by language")
    try:
        data = read_json(path)
    except FileNotFoundError as error:
        known = ", ".join(bundled)
        raise PromptError(
            f"no behaviour {name!r}: give {known}, language:CODE, feature:LAYER/ID, "
            "or a JSON file of phrases by language"
        ) from error
    except (OSError, ValueError) as error:
        raise PromptError(f"{path} is not JSON: {error}") from error
    if not _is_phrases(data):
        raise PromptError(f'{path}: phrases are given by language, as {{"en": ["i am sorry"]}}')
    return PhraseJudge(path.stem, data)


def _is_phrases(data: Any) -> bool:
    if not isinstance(data, dict) or not data:
        return False
    return all(_is_phrase_list(value) for value in data.values())


def _is_phrase_list(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(phrase, str) and phrase for phrase in value)
