"""A meaning as a sentence of a constructed language."""

from training.conlangs.clauses import Phrase, Slots, Word, order, phrase, slots
from training.conlangs.tongues import Mood, Tongue
from training.grammar.frames import (
    Ask,
    AskWord,
    Clause,
    Join,
    Meaning,
    Report,
    Request,
    State,
    Talk,
    Thank,
)
from training.grammar.phrases import words


def sentence(meaning: Meaning, tongue: Tongue) -> str:
    """The meaning in this language: there is one way to say it."""
    return tongue.write(tongue, _clauses(meaning, tongue), _mood(meaning))


def _mood(meaning: Meaning) -> Mood:
    match meaning:
        case Ask() | AskWord():
            return "asked"
        case Request():
            return "ordered"
    return "said"


def _clauses(meaning: Meaning, tongue: Tongue) -> list[str]:
    match meaning:
        case State(clause, opener):
            opening = (Word(f"opener:{opener}"),) if opener else ()
            return [_clause(clause, tongue, opening)]
        case Ask(clause):
            return [_clause(clause, tongue)]
        case AskWord(clause, asked):
            return [_clause(clause, tongue, (Word(f"asked:{asked}"),))]
        case Request():
            return [_ordered(order(meaning), tongue)]
        case Join(first, link, second):
            return [_clause(first, tongue), _clause(second, tongue, (Word(f"link:{link}"),))]
        case Report(speaker, attitude, clause, tense):
            verb = Word(f"attitude:{attitude}").marked(tense if tense != "present" else "")
            said = _ordered(Slots((verb,), phrase(speaker)), tongue)
            return [said, _clause(clause, tongue, (Word("mark:that"),))]
        case Talk(address, name):
            return [_words((Word(f"address:{address}"), Word(f"name:{name.name}")), tongue)]
        case Thank(thing, name):
            thanks = Slots(
                (Word("core:thank"),), (Word(f"name:{name.name}"),), phrase(thing, "object")
            )
            return [_ordered(thanks, tongue)]


def _clause(clause: Clause, tongue: Tongue, opening: Phrase = ()) -> str:
    return words(_words(opening, tongue), _ordered(slots(clause), tongue))


def _ordered(parts: Slots, tongue: Tongue) -> str:
    return words(*(_words(getattr(parts, part), tongue) for part in tongue.order))


def _words(phrase: Phrase, tongue: Tongue) -> str:
    return " ".join(tongue.said(phrase))
