"""Whether a reply shows a behaviour: by phrases, in many languages, or by a function of the user's own."""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from saescope.errors import PromptError

EMPTY = "empty"
# What a reply is judged to be: a name of what it shows, EMPTY, or None for nothing of the kind.
Judge = Callable[[str], str | None]


@dataclass(frozen=True)
class Phrases:
    """A behaviour told by phrases: any of them, anywhere in the reply's beginning, is enough.

    Says which phrase of which language it was, for substring lists misfire and must be seen to be believed.
    """

    name: str
    by_language: Mapping[str, Sequence[str]]
    within: int = 200

    def __call__(self, reply: str) -> str | None:
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


def normalised(text: str) -> str:
    """What is compared: the reply after any thinking, in one case and width, with plain quotes and single spaces."""
    text = text.rpartition("</think>")[2]
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'").replace("`", "'")
    return re.sub(r"\s+", " ", text).strip()


def read_behaviour(name: str) -> Phrases:
    """A bundled behaviour by name, or a JSON file of phrases by language; raises PromptError for anything else."""
    bundled = json.loads((resources.files("saescope.control") / "phrases.json").read_text(encoding="utf-8"))
    if name in bundled:
        return Phrases(name, bundled[name])
    path = Path(name).expanduser()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(bundled)
        raise PromptError(f"no behaviour {name!r}: give {known}, or a JSON file of phrases by language") from error
    except (OSError, ValueError) as error:
        raise PromptError(f"{path} is not JSON: {error}") from error
    lists = data.values() if isinstance(data, dict) else []
    if not lists or not all(isinstance(v, list) and v and all(isinstance(p, str) and p for p in v) for v in lists):
        raise PromptError(f'{path}: phrases are given by language, as {{"en": ["i am sorry"]}}')
    return Phrases(path.stem, data)
