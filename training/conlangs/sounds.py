"""Words of a constructed language, drawn from its sounds; always the same word per concept."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from training.grammar.frames import Address, Asked, Attitude, Link, Opener
from training.grammar.lexicon import lexicon

# What grammar needs besides the words of the lexicon; each is a short word or an ending.
MARKS = (
    "plural", "definite", "object", "goal", "at", "with", "of", "past", "future", "not",
    "progressive", "want", "can", "must", "like", "degree", "more", "most", "than", "many", "some",
    "that", "order", "forbid", "propose",
)  # fmt: skip
PRONOUNS = ("i", "you", "he", "she", "we", "they")
CORE = ("be", "exist", "have", "give", "cost", "currency", "thank", "ask")
MOODS = ("said", "asked", "ordered")


@dataclass(frozen=True)
class Sounds:
    """What a syllable is made of, and how many make a root."""

    onsets: tuple[str, ...]
    nuclei: tuple[str, ...]
    codas: tuple[str, ...]
    syllables: tuple[int, ...]

    def syllable(self, rng: random.Random) -> str:
        """One syllable."""
        return rng.choice(self.onsets) + rng.choice(self.nuclei) + rng.choice(self.codas)

    def word(self, rng: random.Random, short: bool) -> str:
        """A root, or an ending or particle of one syllable."""
        count = 1 if short else rng.choice(self.syllables)
        return "".join(self.syllable(rng) for _ in range(count))


def keys() -> tuple[list[str], list[str]]:
    """Names of all short words and of all roots that sentences need."""
    words = lexicon()
    short_words: dict[str, Sequence[object]] = {
        "mark": MARKS,
        "pronoun": PRONOUNS,
        "digit": range(10),
        "mood": MOODS,
        "link": get_args(Link),
        "asked": get_args(Asked),
    }
    roots: dict[str, Sequence[object]] = {
        "noun": [word.concept for word in words.nouns],
        "adjective": [word.concept for word in words.adjectives],
        "adverb": [word.concept for word in words.adverbs],
        "verb": [word.concept for word in words.verbs],
        "attitude": get_args(Attitude),
        "opener": get_args(Opener),
        "address": get_args(Address),
        "core": CORE,
    }
    return _keys(short_words), _keys(roots)


def _keys(names: Mapping[str, Sequence[object]]) -> list[str]:
    return [f"{kind}:{name}" for kind, named in names.items() for name in named]


def dictionary(name: str, sounds: Sounds) -> dict[str, str]:
    """The word of every key, no two alike; a word is drawn anew while another one has it."""
    short, roots = keys()
    words: dict[str, str] = {}
    used: set[str] = set()
    for key in (*short, *roots):
        rng = random.Random(f"{name}:{key}")
        word = sounds.word(rng, key in short)
        while word in used:
            if rng.random() < 0.8:
                word = sounds.word(rng, key in short)
            else:  # a language may have fewer syllables than short words: some have two
                word += sounds.syllable(rng)
        used.add(word)
        words[key] = word
    return words
