"""Meanings as words with their grammatical marks, before any language orders or spells them."""

from dataclasses import dataclass, replace

from training.grammar.frames import (
    Act,
    Be,
    Clause,
    Compare,
    Cost,
    Exist,
    Give,
    Like,
    Located,
    Most,
    Own,
    Party,
    Request,
    Role,
    Thing,
    Weather,
)
from training.grammar.lexicon import Adjective, Adverb


@dataclass(frozen=True)
class Word:
    """A key of the dictionary, a name or a number, with its marks, innermost first."""

    key: str
    marks: tuple[str, ...] = ()

    def marked(self, *marks: str) -> "Word":
        """The word with more marks, empty ones left out."""
        return replace(self, marks=(*self.marks, *(mark for mark in marks if mark)))


Phrase = tuple[Word, ...]


@dataclass(frozen=True)
class Slots:
    """The parts of a clause; a language says in what order they come."""

    verb: Phrase
    subject: Phrase = ()
    target: Phrase = ()
    rest: Phrase = ()
    time: Phrase = ()
    place: Phrase = ()


def phrase(party: Party | None, case: str = "") -> Phrase:
    """A person or a thing in a case; its head comes first, what describes it after."""
    if party is None:
        return ()
    if isinstance(party, Thing):
        return _thing(party, case)
    if party.pronoun:
        return (Word(f"pronoun:{party.pronoun}").marked(case),)
    if party.name:
        return (Word(f"name:{party.name.name}").marked(case),)
    return phrase(party.thing, case)


def _thing(thing: Thing, case: str) -> Phrase:
    noun = Word(f"noun:{thing.noun.concept}")
    head = noun.marked("plural" if thing.many else "", "definite" if thing.definite else "", case)
    words = [head]
    if thing.adjective:
        words.append(Word(f"adjective:{thing.adjective.concept}"))
    if thing.count:
        words.append(Word(f"number:{thing.count}"))
    if thing.amount:
        words.append(Word(f"mark:{thing.amount}"))
    return (*words, *phrase(thing.owner, "of"))


def slots(clause: Clause) -> Slots:
    """The parts of a clause; tense and negation are marks of its verb."""
    parts = _predicate(clause)
    tense = clause.tense if clause.tense != "present" else ""
    head, *others = parts.verb
    negation = "not" if clause.negative else ""
    verb = (head.marked(tense, negation), *others)
    return replace(parts, verb=verb, time=_adverbs(clause.time), place=phrase(clause.place, "at"))


def _predicate(clause: Clause) -> Slots:
    what = clause.predicate
    match what:
        case Act():
            return _act(what)
        case Give(subject, target, receiver):
            return Slots(
                (Word("core:give"),),
                phrase(subject),
                phrase(target, "object"),
                phrase(receiver, "goal"),
            )
        case Be(subject, adjective, degree):
            return Slots((Word("core:be"),), phrase(subject), _quality(adjective, degree))
        case Role(subject, noun):
            return Slots((Word("core:be"),), phrase(subject), (Word(f"noun:{noun.concept}"),))
        case Exist(subject) | Located(subject):
            return Slots((Word("core:exist"),), phrase(subject))
        case Own(subject, target):
            return Slots((Word("core:have"),), phrase(subject), phrase(target, "object"))
        case Like(subject, target):
            return Slots((Word("mark:like"),), phrase(subject), phrase(target, "object"))
        case Compare(subject, other, adjective):
            more = Word(f"adjective:{adjective.concept}").marked("more")
            return Slots((Word("core:be"),), phrase(subject), (more,), phrase(other, "than"))
        case Most(subject, adjective):
            most = Word(f"adjective:{adjective.concept}").marked("most")
            return Slots((Word("core:be"),), phrase(subject), (most,))
        case Cost(subject, euros):
            price = (Word("core:currency").marked("object"), Word(f"number:{euros}"))
            return Slots((Word("core:cost"),), phrase(subject), price)
        case Weather(noun, strong):
            strength = (Word("mark:degree"),) if strong else ()
            return Slots((Word(f"noun:{noun.concept}"),), rest=strength)


def _quality(adjective: Adjective, degree: Adverb | None) -> Phrase:
    return Word(f"adjective:{adjective.concept}"), *_adverbs(degree)


def _act(act: Act) -> Slots:
    verb = Word(f"verb:{act.verb.concept}").marked(act.mode if act.mode != "plain" else "")
    case = "goal" if act.verb.role == "motion" else "object"
    return Slots(
        verb=(verb, *_adverbs(act.frequency, act.manner)),
        subject=phrase(act.subject),
        target=phrase(act.target, case),
        rest=phrase(act.companion, "with"),
    )


def _adverbs(*adverbs: Adverb | None) -> Phrase:
    return tuple(Word(f"adverb:{adverb.concept}") for adverb in adverbs if adverb)


def order(request: Request) -> Slots:
    """An order, a prohibition or a proposal as a clause without a subject."""
    mark = request.kind if request.kind != "request" else "order"
    case = "goal" if request.verb.role == "motion" else "object"
    return Slots(
        verb=(Word(f"verb:{request.verb.concept}").marked(mark),),
        target=phrase(request.target, case),
        rest=_adverbs(request.manner),
        place=phrase(request.place, "at"),
    )
