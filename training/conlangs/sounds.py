"""Words of a constructed language, drawn from its sounds: one language and one concept always give one word."""

import random
from dataclasses import dataclass
from typing import get_args

from training.grammar.frames import Address, Asked, Attitude, Link, Opener
from training.grammar.lexicon import lexicon

# What grammar needs beside the words of the lexicon; a short word or an ending each.
MARKS = (
    "plural", "definite", "object", "goal", "at", "with", "of", "past", "future", "not", "progressive", "want", "can",
    "must", "like", "degree", "more", "most", "than", "many", "some", "that", "order", "forbid", "propose",
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
        return "".join(
            self.syllable(rng) for _ in range(1 if short else rng.choice(self.syllables))
        )


def keys() -> tuple[list[str], list[str]]:
    """Names of all short words and of all roots that sentences need."""
    words = lexicon()
    short = [f"mark:{mark}" for mark in MARKS] + [f"pronoun:{who}" for who in PRONOUNS]
    short += [f"digit:{n}" for n in range(10)] + [f"mood:{mood}" for mood in MOODS]
    short += [f"link:{link}" for link in get_args(Link)] + [
        f"asked:{asked}" for asked in get_args(Asked)
    ]
    roots = [f"noun:{word.concept}" for word in words.nouns]
    roots += [f"adjective:{word.concept}" for word in words.adjectives]
    roots += [f"adverb:{word.concept}" for word in words.adverbs] + [
        f"verb:{word.concept}" for word in words.verbs
    ]
    roots += [f"attitude:{word}" for word in get_args(Attitude)] + [
        f"opener:{word}" for word in get_args(Opener)
    ]
    roots += [f"address:{word}" for word in get_args(Address)] + [f"core:{word}" for word in CORE]
    return short, roots


def dictionary(name: str, sounds: Sounds) -> dict[str, str]:
    """The word of every key, no two alike; a word is drawn anew while another one has it."""
    short, roots = keys()
    made: dict[str, str] = {}
    used: set[str] = set()
    for key in (*short, *roots):
        rng = random.Random(f"{name}:{key}")
        word = sounds.word(rng, key in short)
        while word in used:
            # A language may have fewer syllables than short words: then some have two.
            word = (
                sounds.word(rng, key in short)
                if rng.random() < 0.8
                else word + sounds.syllable(rng)
            )
        used.add(word)
        made[key] = word
    return made
