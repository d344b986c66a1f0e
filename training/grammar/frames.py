"""The meanings a sentence can have, independent of any language."""

import zlib
from dataclasses import dataclass
from typing import Literal

from training.grammar.lexicon import Adjective, Adverb, Name, Noun, Verb

Tense = Literal["past", "present", "future"]
Mode = Literal["plain", "progressive", "want", "can", "must", "like"]
Amount = Literal["", "many", "some"]
Pronoun = Literal["", "i", "you", "he", "she", "we", "they"]
Attitude = Literal["say", "think", "know", "hope", "hear"]
Asked = Literal["what", "who", "where", "when", "why", "how_many"]
Link = Literal["because", "but", "and", "when", "if", "so", "although", "while"]
Opener = Literal[
    "then",
    "first",
    "finally",
    "maybe",
    "of_course",
    "however",
    "news",
    "luckily",
    "also",
    "suddenly",
]
Address = Literal[
    "dear", "hello", "good_morning", "goodbye", "see_you", "sincerely", "sorry", "congratulations"
]


@dataclass(frozen=True)
class Thing:
    """A noun with its adjective, its number and its owner."""

    noun: Noun
    adjective: Adjective | None = None
    count: int = 0
    amount: Amount = ""
    plural: bool = False
    definite: bool = False
    owner: "Who | None" = None

    @property
    def many(self) -> bool:
        """Whether more than one is meant."""
        return self.plural or self.count > 1 or self.amount in ("many", "some")


@dataclass(frozen=True)
class Who:
    """A person: a pronoun, a name or a noun; exactly one of the three is set."""

    pronoun: Pronoun = ""
    name: Name | None = None
    thing: Thing | None = None

    @property
    def many(self) -> bool:
        """Whether more than one person is meant."""
        return self.pronoun in ("we", "they") or (self.thing is not None and self.thing.many)

    @property
    def feminine(self) -> bool:
        """Whether Hindi agrees with this person in the feminine."""
        if self.name:
            return self.name.hi_gender == "f"
        return self.pronoun == "she" or (
            self.thing is not None and self.thing.noun.hi_gender == "f"
        )


Party = Who | Thing


@dataclass(frozen=True)
class Act:
    """Someone does something, perhaps to something, somewhere, with someone, in some way."""

    subject: Who
    verb: Verb
    target: Party | None = None
    mode: Mode = "plain"
    companion: Who | None = None
    manner: Adverb | None = None
    frequency: Adverb | None = None


@dataclass(frozen=True)
class Give:
    """Someone gives a thing to someone."""

    subject: Who
    target: Thing
    receiver: Who


@dataclass(frozen=True)
class Be:
    """Someone or something has a quality."""

    subject: Party
    adjective: Adjective
    degree: Adverb | None = None


@dataclass(frozen=True)
class Role:
    """Someone is of some profession or family relation."""

    subject: Who
    noun: Noun


@dataclass(frozen=True)
class Exist:
    """There is something in the place of the clause."""

    subject: Thing


@dataclass(frozen=True)
class Located:
    """A known thing is in the place of the clause."""

    subject: Thing


@dataclass(frozen=True)
class Own:
    """Someone has a thing."""

    subject: Who
    target: Thing


@dataclass(frozen=True)
class Like:
    """Someone likes a kind of thing."""

    subject: Who
    target: Thing


@dataclass(frozen=True)
class Compare:
    """One party has more of a quality than another."""

    subject: Party
    other: Party
    adjective: Adjective


@dataclass(frozen=True)
class Most:
    """A thing has the most of a quality in the place of the clause."""

    subject: Thing
    adjective: Adjective


@dataclass(frozen=True)
class Cost:
    """A thing has a price in euros."""

    subject: Thing
    euros: int


@dataclass(frozen=True)
class Weather:
    """There is some weather in the place of the clause."""

    noun: Noun
    strong: bool = False


Predicate = Act | Give | Be | Role | Exist | Located | Own | Like | Compare | Most | Cost | Weather


@dataclass(frozen=True)
class Clause:
    """A predicate at a time and a place, affirmed or denied."""

    predicate: Predicate
    tense: Tense = "present"
    negative: bool = False
    time: Adverb | None = None
    place: Thing | None = None


@dataclass(frozen=True)
class State:
    """A statement, perhaps opened by a word that ties it to what came before."""

    clause: Clause
    opener: Opener | None = None


@dataclass(frozen=True)
class Ask:
    """A question to be answered with yes or no."""

    clause: Clause


@dataclass(frozen=True)
class AskWord:
    """A question with a question word; the asked part of the clause is replaced by that word."""

    clause: Clause
    asked: Asked


@dataclass(frozen=True)
class Request:
    """An order, a polite request, a prohibition or a proposal to the listener."""

    verb: Verb
    target: Party | None
    manner: Adverb | None = None
    place: Thing | None = None
    kind: Literal["request", "forbid", "propose"] = "request"


@dataclass(frozen=True)
class Join:
    """Two clauses and what links the second to the first."""

    first: Clause
    link: Link
    second: Clause


@dataclass(frozen=True)
class Report:
    """What someone says, thinks, knows or hopes."""

    speaker: Who
    attitude: Attitude
    clause: Clause
    tense: Tense = "present"


@dataclass(frozen=True)
class Talk:
    """A formula of a letter or a meeting, addressed to someone by name."""

    address: Address
    name: Name


@dataclass(frozen=True)
class Thank:
    """Thanks to someone by name for a thing."""

    thing: Thing
    name: Name


Meaning = State | Ask | AskWord | Request | Join | Report | Talk | Thank


@dataclass(frozen=True)
class Style:
    """Which of the possible renderings to take; the register holds for a whole document."""

    seed: int = 0
    register: int = 0

    def pick(self, site: str, options: int) -> int:
        """A stable choice among the options at one site of the grammar."""
        return zlib.crc32(f"{site}:{self.seed}".encode()) % options

    def other(self, step: int) -> "Style":
        """The style of another clause of the same sentence."""
        return Style(self.seed * 31 + step, self.register)
