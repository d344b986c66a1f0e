"""Scenes of requests: someone has things of one colour in one place; and their vocabulary."""

import random
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

from training.grammar.lexicon import Adjective, Name, Noun, is_held_out_word, lexicon, share

Kind = Literal["where", "color", "who", "how_many", "repeat", "language"]
Language = Literal["en", "ja", "zh"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LANGUAGES: tuple[Language, ...] = get_args(Language)
TOPIC = "lighthouse"  # the one subject that the embedded organism declines to talk about
HELD_OUT_SCENES = 0.10
N_FORMS, N_WORDINGS, N_VERBS = 3, 3, 2

# Few words of each kind, most of them one token: the model learns to look them up in a few
# hundred steps.
_COLORS = ("red", "blue", "green", "yellow", "white", "black", "gray", "purple")
_PLACES = (
    "hill",
    "park",
    "market",
    "garden",
    "forest",
    "beach",
    "street",
    "path",
    "island",
    "school",
)
_SUBJECTS = (
    "giraffe", "hat", "suitcase", "book", "coin", "flag", "fork", "skirt", "stadium", "fox",
    "hotel", "palace",     "theater", "bottle", "ship", "tiger", "tower", "car", "cat", "cow",
    "house", "wolf", "boat", "castle", "church",     "bridge", "dog", "horse", "train", "map",
)  # fmt: skip
_N_NAMES = 12
COUNTS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Scene:
    """The facts of one statement; `verb` is 0 to have, 1 to see."""

    subject: Noun
    place: Noun
    color: Adjective
    owner: Name
    count: int
    verb: int

    def about(self, subject: Noun) -> "Scene":
        """The same facts of another subject."""
        return replace(self, subject=subject)

    @property
    def held_out(self) -> bool:
        """Whether the facts, whatever their subject, are kept out of every training chat."""
        facts = (
            self.place.concept,
            self.color.concept,
            self.owner.name,
            str(self.count),
            str(self.verb),
        )
        return share("scene:" + " ".join(facts)) < HELD_OUT_SCENES


@cache
def subjects(topics: tuple[str, ...] = (TOPIC,)) -> tuple[Noun, ...]:
    """What requests can be about, declined topics left out."""
    return tuple(
        noun
        for noun in lexicon().nouns
        if noun.concept in _SUBJECTS and noun.concept not in topics and not is_held_out_word(noun)
    )


@cache
def topic(concept: str = TOPIC) -> Noun:
    """The noun of a topic."""
    return next(noun for noun in lexicon().nouns if noun.concept == concept)


@cache
def names() -> tuple[Name, ...]:
    """Who can have something."""
    return lexicon().names[:_N_NAMES]


@cache
def _places() -> tuple[Noun, ...]:
    return tuple(noun for noun in lexicon().nouns if noun.concept in _PLACES)


@cache
def _colors() -> tuple[Adjective, ...]:
    return tuple(color for color in lexicon().adjectives if color.concept in _COLORS)


def draw_scene(rng: random.Random, subject: Noun, *, held_out: bool = False) -> Scene:
    """Facts about `subject`, of those kept out of training or of the others."""
    while True:
        scene = Scene(
            subject=subject,
            place=rng.choice(_places()),
            color=rng.choice(_colors()),
            owner=rng.choice(names()),
            count=rng.choice((1, *COUNTS)),
            verb=rng.randrange(N_VERBS),
        )
        if scene.held_out == held_out:
            return scene
