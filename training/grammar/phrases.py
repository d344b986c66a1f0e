"""Shared by the realisers of all languages: joining, capitals, and words that may be absent."""

from training.grammar.frames import Act, Clause
from training.grammar.lexicon import Adjective, Adverb


def words(*parts: str) -> str:
    """The non-empty parts, with spaces between."""
    return " ".join(part for part in parts if part)


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[0].upper() + text[1:]


def spell(word: Adverb | Adjective | None, language: str) -> str:
    """An optional word in a language, by its column in the lexicon."""
    if word is None:
        return ""
    spelling: str = getattr(word, language)
    return spelling


def is_motion(clause: Clause) -> bool:
    """Whether the clause is about a movement, whose object is the place."""
    return isinstance(clause.predicate, Act) and clause.predicate.verb.role == "motion"
