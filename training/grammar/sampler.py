"""Draws meanings: who does what, where and when, with words that fit each other."""

import random
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import get_args

from training.grammar.frames import (
    Act,
    Address,
    Ask,
    Asked,
    AskWord,
    Attitude,
    Be,
    Clause,
    Compare,
    Cost,
    Exist,
    Give,
    Join,
    Like,
    Link,
    Located,
    Meaning,
    Mode,
    Most,
    Opener,
    Own,
    Party,
    Predicate,
    Pronoun,
    Report,
    Request,
    Role,
    State,
    Talk,
    Tense,
    Thank,
    Thing,
    Weather,
    Who,
)
from training.grammar.lexicon import (
    Adjective,
    Adverb,
    Name,
    Noun,
    Verb,
    draw,
    is_held_out_word,
    lexicon,
    ranked,
)

SCENERY = {"beach", "forest", "island", "valley", "desert", "field", "mountain", "hill", "cave"}
RELATIONS = {
    "mother",
    "father",
    "brother",
    "sister",
    "son",
    "daughter",
    "grandmother",
    "husband",
    "wife",
    "friend",
    "neighbor",
    "guest",
    "teacher",
    "doctor",
    "student",
}
FAMILY = {
    "mother",
    "father",
    "brother",
    "sister",
    "son",
    "daughter",
    "grandmother",
    "husband",
    "wife",
    "friend",
    "neighbor",
    "guest",
    "man",
    "woman",
    "boy",
    "girl",
    "child",
    "thief",
    "grandfather",
}
UNOWNED = {"nature", "weather", "person"}
HOMES = {
    "house",
    "apartment",
    "room",
    "kitchen",
    "garden",
    "school",
    "village",
    "city",
    "country",
    "office",
    "shop",
    "cellar",
    "balcony",
    "classroom",
    "university",
    "bakery",
    "restaurant",
    "cafe",
    "street",
}
SINGLE_WEATHER = {"rainbow", "cloud", "storm"}
PLACELESS = {"cross", "climb", "visit", "build", "wait", "describe"}
# Roles of verbs, each with the cumulative share up to it.
ROLE_SHARES = (
    ("transitive", 0.55),
    ("intransitive", 0.68),
    ("motion", 0.82),
    ("person", 0.92),
    ("attitude", 1.0),
)
UNCOUNTED = {"drink", "weather", "nature", "body"}
GOODS = ("food", "drink", "object", "clothes", "vehicle")
THINGS = (*GOODS, "animal", "plant")
SEEN = (*THINGS, "person", "place")
NO_REQUEST = {"see", "find", "lose", "hear", "receive", "get", "arrive", "cough", "live", "cry"}
NOT_DENIED = {"always", "never", "rarely", "seldom"}


def concepts(meaning: object) -> list[str]:
    """The names of all content words of a meaning, in order."""
    if isinstance(meaning, Noun | Adjective | Verb | Adverb):
        return [meaning.concept]
    if isinstance(meaning, Name):
        return [meaning.name]
    if is_dataclass(meaning):
        return [
            name for field in fields(meaning) for name in concepts(getattr(meaning, field.name))
        ]
    return []


@cache
def nouns_of(kinds: tuple[str, ...], held_out: bool) -> tuple[Noun, ...]:
    """The nouns of some kinds in rank order."""
    return tuple(
        noun
        for noun in ranked(lexicon().nouns)
        if noun.kind in kinds and is_held_out_word(noun) == held_out
    )


@cache
def objects_of(verb: Verb) -> tuple[Noun, ...]:
    """The trained nouns a verb can take as its object."""
    return tuple(
        noun for noun in ranked(lexicon().nouns) if verb.takes(noun) and not is_held_out_word(noun)
    )


@cache
def verbs_of(roles: tuple[str, ...]) -> tuple[Verb, ...]:
    """The trained verbs of some roles that have an object in the lexicon, in rank order."""
    return tuple(
        verb
        for verb in ranked(lexicon().verbs)
        if verb.role in roles
        and not is_held_out_word(verb)
        and (verb.objects == "-" or objects_of(verb))
    )


@cache
def adjectives_of(noun: Noun) -> tuple[Adjective, ...]:
    """The trained adjectives that fit a noun, in rank order."""
    return tuple(
        word
        for word in ranked(lexicon().adjectives)
        if word.fits(noun) and not is_held_out_word(word)
    )


@cache
def adverbs_of(kind: str) -> tuple[Adverb, ...]:
    """The adverbs of a kind in rank order; adverbs are few and never held out."""
    return tuple(word for word in ranked(lexicon().adverbs) if word.kind == kind)


@cache
def places() -> tuple[Noun, ...]:
    """The trained nouns that can be the place of a clause."""
    return tuple(
        noun
        for noun in ranked(lexicon().nouns)
        if (noun.kind == "place" or noun.concept in SCENERY) and not is_held_out_word(noun)
    )


@dataclass(frozen=True)
class Scene:
    """What the sentences of one document have in common."""

    people: tuple[Who, ...]
    place: Thing
    nouns: tuple[Noun, ...]
    tense: Tense


class Sampler:
    """Draws meanings about one scene."""

    def __init__(self, rng: random.Random) -> None:
        """Takes the source of chance and draws a scene from it."""
        self.rng = rng
        self.forced: Noun | Adjective | Verb | None = None
        people = (self.newcomer(), self.newcomer(), self.newcomer())
        place = Thing(draw(rng, places()), definite=True)
        nouns = tuple(draw(rng, nouns_of(THINGS, False)) for _ in range(3))
        tense: Tense = rng.choice(("past", "past", "present", "future"))
        self.scene = Scene(people, place, nouns, tense)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.rng.random() < probability

    def name(self) -> Name:
        """A person's name."""
        return self.rng.choice(lexicon().names)

    def newcomer(self) -> Who:
        """A person not mentioned before."""
        if self.chance(0.35):
            return Who(name=self.name())
        noun = draw(self.rng, nouns_of(("person",), False))
        owned = noun.concept in RELATIONS and self.chance(0.7)
        owner = Who(pronoun=self.rng.choice(get_args(Pronoun)[1:])) if owned else None
        adjective = self.adjective(noun) if self.chance(0.25) else None
        return Who(
            thing=Thing(
                noun,
                adjective,
                definite=True,
                owner=owner,
                plural=owner is None and self.chance(0.15),
            )
        )

    def who(self) -> Who:
        """Someone of the scene, a pronoun or a newcomer."""
        roll = self.rng.random()
        if roll < 0.4:
            return self.rng.choice(self.scene.people)
        if roll < 0.75:
            return Who(pronoun=self.rng.choice(("i", "i", "you", "he", "she", "we", "they")))
        return self.newcomer()

    def somebody(self, other: Who) -> Who:
        """One person, named or described, other than the given one."""
        for _ in range(20):
            who = self.newcomer()
            if not who.many and who != other:
                return who
        return Who(name=lexicon().names[0])

    def adjective(self, noun: Noun) -> Adjective | None:
        """A quality that fits the noun."""
        if isinstance(self.forced, Adjective) and self.forced.fits(noun):
            return self.forced
        fitting = adjectives_of(noun)
        return draw(self.rng, fitting, 0.4) if fitting else None

    def noun(self, kinds: tuple[str, ...]) -> Noun:
        """A noun of some kinds, at times one the scene already has."""
        if isinstance(self.forced, Noun) and self.forced.kind in kinds:
            return self.forced
        known = [noun for noun in self.scene.nouns if noun.kind in kinds]
        if known and self.chance(0.35):
            return self.rng.choice(known)
        return draw(self.rng, nouns_of(kinds, False))

    def thing(self, noun: Noun, definite: bool | None = None) -> Thing:
        """A noun with its adjective, number and owner."""
        adjective = self.adjective(noun) if self.chance(0.4) else None
        if definite:
            return Thing(noun, adjective, definite=True)
        countable = noun.en != noun.en_plural and noun.kind not in UNCOUNTED
        roll = self.rng.random()
        if roll < 0.2 and definite is None and noun.kind not in UNOWNED:
            return Thing(noun, adjective, owner=Who(pronoun=self.rng.choice(get_args(Pronoun)[1:])))
        if roll < 0.45 and countable:
            return Thing(
                noun, adjective, count=self.rng.choice((2, 2, 3, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20))
            )
        if roll < 0.55:
            return Thing(noun, adjective, amount="many")
        if roll < 0.6 and countable and noun.kind != "person":
            return Thing(noun, adjective, amount="some")
        if roll < 0.75 and countable:
            return Thing(noun, adjective, plural=True)
        return Thing(noun, adjective, definite=definite is None and self.chance(0.5))

    def place(self) -> Thing:
        """The place of the scene or another one."""
        if self.chance(0.4):
            return self.scene.place
        forced = self.forced
        noun = (
            forced
            if isinstance(forced, Noun) and forced.kind == "place"
            else draw(self.rng, places())
        )
        adjective = self.adjective(noun) if self.chance(0.25) else None
        owner = (
            Who(pronoun=self.rng.choice(get_args(Pronoun)[1:]))
            if noun.concept in HOMES and self.chance(0.3)
            else None
        )
        return Thing(noun, adjective, definite=True, owner=owner)

    def verb(self, *roles: str) -> Verb:
        """A verb of one of the roles."""
        if isinstance(self.forced, Verb) and self.forced.role in roles:
            return self.forced
        return draw(self.rng, verbs_of(roles), 0.5)

    def target(self, verb: Verb, subject: Who) -> Party | None:
        """An object that the verb can take."""
        if verb.objects == "-":
            return None
        if verb.role == "motion":
            return self.place()
        if verb.role == "person" or ("person" in verb.objects.split() and self.chance(0.3)):
            return self.somebody(subject)
        forced = self.forced
        if isinstance(forced, Noun) and verb.takes(forced):
            return self.thing(forced)
        fitting = [noun for noun in objects_of(verb) if noun.kind != "person"]
        known = [noun for noun in self.scene.nouns if noun in fitting]
        if known and self.chance(0.4):
            return self.thing(self.rng.choice(known))
        return self.thing(draw(self.rng, fitting or list(objects_of(verb))))

    def act(self, tense: Tense) -> Act:
        """Someone does something."""
        roll = self.rng.random()
        role = next(role for role, below in ROLE_SHARES if roll < below)
        if isinstance(self.forced, Verb):
            role = self.forced.role
        verb, subject = self.verb(role), self.who()
        mode: Mode = "plain"
        if verb.role != "attitude" and self.chance(0.4):
            modes: tuple[Mode, ...] = ("want", "can", "must", "like", "progressive")
            mode = self.rng.choice(modes[:3] if tense == "future" else modes)
        companion = (
            self.who()
            if verb.role in ("intransitive", "motion", "transitive") and self.chance(0.15)
            else None
        )
        if companion and (companion == subject or companion.pronoun in ("i", "you")):
            companion = None
        manner = (
            draw(self.rng, adverbs_of("manner"))
            if role in ("transitive", "intransitive") and self.chance(0.2)
            else None
        )
        frequent = tense == "present" and mode in ("plain", "want") and self.chance(0.3)
        frequency = draw(self.rng, adverbs_of("frequency")) if frequent else None
        return Act(subject, verb, self.target(verb, subject), mode, companion, manner, frequency)

    def party(self, kinds: tuple[str, ...]) -> Party:
        """A definite thing, or a person."""
        noun = self.noun(kinds)
        if noun.kind == "person" and self.chance(0.6):
            return self.who()
        return Thing(noun, definite=True, plural=noun.en != noun.en_plural and self.chance(0.2))

    def quality_of(self, who: Party) -> Adjective | None:
        """A quality one can say of a party."""
        noun = who.noun if isinstance(who, Thing) else nouns_of(("person",), False)[0]
        return self.adjective(noun)

    def be(self) -> Predicate:
        """A quality, a comparison or a superlative."""
        subject = self.party(SEEN)
        quality = self.quality_of(subject)
        if quality is None:
            return self.own()
        roll = self.rng.random()
        if roll < 0.55:
            return Be(
                subject, quality, draw(self.rng, adverbs_of("degree")) if self.chance(0.4) else None
            )
        kind = subject.noun.kind if isinstance(subject, Thing) else "person"
        other = self.party((kind,))
        if other != subject and quality.fits(
            other.noun if isinstance(other, Thing) else nouns_of(("person",), False)[0]
        ):
            return Compare(subject, other, quality)
        return Be(subject, quality)

    def role(self) -> Role:
        """Someone's profession."""
        noun = self.noun(("person",))
        while noun.concept in FAMILY:
            noun = draw(self.rng, nouns_of(("person",), False))
        who = self.who()
        return Role(Who(name=self.name()) if who.thing else who, noun)

    def give(self) -> Give:
        """Someone gives something to someone."""
        subject = self.who()
        return Give(
            subject,
            self.thing(self.noun(("food", "object", "clothes", "plant"))),
            self.somebody(subject),
        )

    def own(self) -> Own:
        """Someone has something."""
        return Own(
            self.who(),
            self.thing(self.noun(("object", "clothes", "animal", "vehicle")), definite=False),
        )

    def like(self) -> Like:
        """Someone likes a kind of thing."""
        noun = self.noun(("food", "drink", "animal", "plant", "abstract", "nature"))
        plural = noun.en != noun.en_plural and noun.kind not in UNCOUNTED
        return Like(
            self.who(),
            Thing(
                noun,
                self.adjective(noun) if self.chance(0.4) else None,
                plural=plural,
                definite=noun.kind == "nature",
            ),
        )

    def tense(self) -> Tense:
        """The tense of the scene, or another at times."""
        tenses: tuple[Tense, ...] = get_args(Tense)
        return self.scene.tense if self.chance(0.75) else self.rng.choice(tenses)

    def clause(self, tense: Tense) -> Clause:
        """A clause of any frame."""
        roll = self.rng.random()
        forced_verb = isinstance(self.forced, Verb)
        what: Predicate = self.act(tense) if roll < 0.55 or forced_verb else self.state(tense)
        negative = self.chance(0.16) and not isinstance(what, Most | Cost | Weather | Compare)
        if isinstance(what, Act) and what.frequency and what.frequency.concept in NOT_DENIED:
            negative = False
        timely = not isinstance(what, Act) or what.frequency is None
        time = draw(self.rng, adverbs_of(f"time_{tense}")) if timely and self.chance(0.45) else None
        return Clause(what, tense, negative, time, self.where(what))

    def state(self, tense: Tense) -> Predicate:
        """A predicate that is no act."""
        makers: tuple[Callable[[], Predicate], ...] = (
            self.be,
            self.be,
            self.be,
            self.role,
            self.give,
            self.give,
            self.own,
            self.own,
            self.like,
            self.like,
            lambda: Exist(self.thing(self.noun(SEEN[:-1]), definite=False)),
            lambda: Exist(self.thing(self.noun(THINGS), definite=False)),
            lambda: Located(
                Thing(self.noun(("object", "animal", "vehicle", "clothes")), definite=True)
            ),
            lambda: Cost(
                Thing(self.noun(("object", "clothes", "food")), definite=True),
                self.rng.randint(2, 95),
            ),
            self.weather,
            self.most,
        )
        return self.rng.choice(makers)()

    def weather(self) -> Predicate:
        """Some weather."""
        noun = self.noun(("weather",))
        return (
            Exist(Thing(noun))
            if noun.concept in SINGLE_WEATHER
            else Weather(noun, self.chance(0.3))
        )

    def most(self) -> Predicate:
        """A superlative of a thing in its place."""
        subject = Thing(
            self.noun(("object", "animal", "person", "plant", "vehicle")), definite=True
        )
        quality = self.quality_of(subject)
        return Most(subject, quality) if quality else self.own()

    def where(self, what: Predicate) -> Thing | None:
        """A place for the predicates that want one."""
        if isinstance(what, Exist | Located | Weather | Most):
            return self.place()
        if (
            not isinstance(what, Act)
            or what.verb.role in ("motion", "attitude")
            or what.verb.concept in PLACELESS
        ):
            return None
        return self.place() if self.chance(0.35) else None

    def question_word(self) -> AskWord:
        """A question with a question word, free of what the answer would say."""
        tense = self.scene.tense
        asked: Asked = self.rng.choice(get_args(Asked))
        if asked == "how_many":
            countable = [
                noun
                for noun in nouns_of(("animal", "object", "clothes"), False)
                if noun.en != noun.en_plural
            ]
            return AskWord(Clause(Own(self.who(), Thing(draw(self.rng, countable))), tense), asked)
        verb, subject = self.verb("transitive"), self.who()
        time = (
            draw(self.rng, adverbs_of(f"time_{tense}"))
            if asked != "when" and self.chance(0.5)
            else None
        )
        if asked == "who":
            subject = Who(pronoun="he")
        if asked == "where" and self.chance(0.5):
            return AskWord(Clause(Act(subject, verbs_of(("motion",))[0]), tense, time=time), asked)
        target = None if asked == "what" else self.target(verb, subject)
        return AskWord(Clause(Act(subject, verb, target), tense, time=time), asked)

    def request(self) -> Request:
        """An order or a proposal."""
        verb = self.verb("transitive", "transitive", "person", "motion", "intransitive")
        while verb.concept in NO_REQUEST:
            verb = draw(self.rng, verbs_of(("transitive", "intransitive")))
        manner = (
            draw(self.rng, adverbs_of("manner"))
            if verb.role == "transitive" and self.chance(0.3)
            else None
        )
        place = (
            self.place()
            if verb.role in ("transitive", "intransitive") and self.chance(0.3)
            else None
        )
        if verb.concept in PLACELESS:
            place = None
        kind = self.rng.choices(("request", "forbid", "propose"), (5, 2, 3))[0]
        target = self.target(verb, Who(pronoun="you"))
        if kind == "request":
            return Request(verb, target, manner, place)
        return Request(verb, target, manner, place, "forbid" if kind == "forbid" else "propose")

    def join(self) -> Join:
        """Two clauses and their connective; conditions and times lie in the present or the past."""
        link: Link = self.rng.choice(get_args(Link))
        tense: Tense = self.scene.tense
        if link == "if" and tense == "past":
            tense = "present"
        if link in ("when", "if", "while") and tense == "future":
            return Join(self.clause("future"), link, self.clause("present"))
        return Join(self.clause(tense), link, self.clause(tense))

    def report(self) -> Report:
        """What someone says or thinks."""
        attitudes: tuple[Attitude, ...] = get_args(Attitude)
        attitude = self.rng.choice(attitudes)
        tense: Tense = "past" if self.scene.tense == "past" else "present"
        return Report(self.who(), attitude, self.clause(self.scene.tense), tense)

    def meaning(self) -> Meaning:
        """A meaning of any kind."""
        roll = self.rng.random()
        if roll < 0.42:
            return self.opened() if self.chance(0.3) else State(self.clause(self.tense()))
        if roll < 0.66:
            return self.join()
        if roll < 0.75:
            return self.report()
        if roll < 0.82:
            return Ask(self.positive())
        if roll < 0.88:
            return self.question_word()
        if roll < 0.97:
            return self.request()
        return Thank(
            self.thing(self.noun(("food", "object", "clothes", "plant")), definite=True),
            self.name(),
        )

    def opened(self) -> State:
        """A statement tied to what came before."""
        clause, opener = self.clause(self.tense()), self.opener()
        if opener == "suddenly":
            clause = Clause(self.act("past"), "past", place=clause.place)
        return State(clause, opener)

    def opener(self) -> Opener:
        """A word that ties a sentence to what came before."""
        choices: tuple[Opener, ...] = get_args(Opener)
        return self.rng.choice(choices)

    def positive(self) -> Clause:
        """A clause that is not denied."""
        clause = self.clause(self.tense())
        return Clause(clause.predicate, clause.tense, False, clause.time, clause.place)

    def long_meaning(self) -> Meaning:
        """A meaning that makes a long sentence, of a kind chosen to vary how sentences start."""
        roll = self.rng.random()
        if roll < 0.6:
            return self.join()
        if roll < 0.75:
            return self.report()
        if roll < 0.85:
            return self.opened()
        if roll < 0.93:
            return Ask(self.positive())
        return self.request()

    def talk(self, opening: bool) -> Talk:
        """The first or last line of a letter or a meeting."""
        addresses: tuple[Address, ...] = get_args(Address)
        return Talk(self.rng.choice(addresses[:3] if opening else addresses[3:]), self.name())
