"""Reads the word lists and draws words from them by Zipf's law, some words being held out."""

import csv
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Protocol, TypeVar

FOLDER = Path(__file__).parent / "lexicon"
HELD_OUT_WORDS = 0.06


@dataclass(frozen=True)
class Noun:
    """A thing, with its name in each language."""

    concept: str
    kind: str
    en: str
    en_plural: str
    ja: str
    zh: str
    zh_classifier: str
    hi: str
    hi_gender: str
    eu: str
    eo: str


@dataclass(frozen=True)
class Adjective:
    """A quality, and the kinds of noun it fits."""

    concept: str
    applies: str
    en: str
    ja: str
    zh: str
    hi: str
    eu: str
    eo: str

    def fits(self, noun: Noun) -> bool:
        """Whether this quality can be said of the noun."""
        return self.applies == "all" or noun.kind in self.applies.split()


@dataclass(frozen=True)
class Adverb:
    """A time, a frequency, a manner or a degree."""

    concept: str
    kind: str
    en: str
    ja: str
    zh: str
    hi: str
    eu: str
    eo: str


@dataclass(frozen=True)
class Verb:
    """An action, with what each language needs to inflect it."""

    concept: str
    role: str
    objects: str
    en: str
    en_past: str
    ja: str
    ja_group: str
    ja_particle: str
    zh: str
    zh_done: str
    hi: str
    hi_mark: str
    eu: str
    eu_impf: str
    eu_aux: str
    eo: str

    def takes(self, noun: Noun) -> bool:
        """Whether the noun can be the object of this verb."""
        wanted = self.objects.split()
        return noun.kind in wanted or f"={noun.concept}" in wanted


@dataclass(frozen=True)
class Name:
    """A person's name, written in Latin script in every language."""

    name: str
    hi_gender: str


class Named(Protocol):
    """Anything with a concept name."""

    @property
    def concept(self) -> str:
        """The name of the concept."""
        ...


W = TypeVar("W", bound=Named)
T = TypeVar("T")


def share(text: str) -> float:
    """A stable number in [0, 1) for a text, the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def is_held_out_word(word: Named) -> bool:
    """Whether the word is kept out of every training document."""
    return share(f"word:{word.concept}") < HELD_OUT_WORDS


def rows(file: str) -> list[list[str]]:
    """The rows of one tab-separated word list, without its header."""
    with (FOLDER / file).open(encoding="utf-8", newline="") as lines:
        return list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]


@dataclass(frozen=True)
class Lexicon:
    """All the words the grammar can say."""

    nouns: tuple[Noun, ...]
    adjectives: tuple[Adjective, ...]
    adverbs: tuple[Adverb, ...]
    verbs: tuple[Verb, ...]
    names: tuple[Name, ...]


@cache
def lexicon() -> Lexicon:
    """The word lists of this package, read once."""
    return Lexicon(
        nouns=tuple(Noun(*row) for row in rows("nouns.tsv")),
        adjectives=tuple(Adjective(*row) for row in rows("adjectives.tsv")),
        adverbs=tuple(Adverb(*row) for row in rows("adverbs.tsv")),
        verbs=tuple(Verb(*row) for row in rows("verbs.tsv")),
        names=tuple(Name(*row) for row in rows("names.tsv")),
    )


@cache
def cumulative_weights(size: int, exponent: float) -> list[float]:
    """The running sums of rank ** -exponent."""
    return list(accumulate((rank + 1) ** -exponent for rank in range(size)))


def draw(rng: random.Random, words: Sequence[T], exponent: float = 0.7) -> T:
    """One of the words, the word of rank r with a chance proportional to r ** -exponent."""
    return rng.choices(words, cum_weights=cumulative_weights(len(words), exponent))[0]


def ranked(words: Sequence[W]) -> tuple[W, ...]:
    """The words in the fixed shuffled order that gives each its rank."""
    return tuple(sorted(words, key=lambda word: share(f"rank:{word.concept}")))
