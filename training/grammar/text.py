"""Writes documents in one language, and held-out sentences in all six at once."""

import random
from collections import Counter

from training.grammar import basque, chinese, english, esperanto, hindi, japanese
from training.grammar.frames import Meaning, Style
from training.grammar.lexicon import Adjective, Noun, Verb, draw, is_held_out_word, lexicon, share
from training.grammar.sampler import Sampler, concepts

LANGUAGES = ("japanese", "english", "chinese", "hindi", "basque", "esperanto")
HELD_OUT_MEANINGS = 0.10
REALISERS = {
    "japanese": japanese.sentence,
    "english": english.sentence,
    "chinese": chinese.sentence,
    "hindi": hindi.sentence,
    "basque": basque.sentence,
    "esperanto": esperanto.sentence,
}
SPACELESS = ("japanese", "chinese")


def is_held_out_meaning(meaning: Meaning) -> bool:
    """Whether this combination of content words is kept out of the training text."""
    return share("meaning:" + " ".join(sorted(concepts(meaning)))) < HELD_OUT_MEANINGS


def realise(language: str, meaning: Meaning, style: Style) -> str:
    """The meaning as a sentence of the language."""
    return REALISERS[language](meaning, style)


def document(language: str, rng: random.Random) -> str:
    """Two to five sentences about one scene in one language, without held-out words or meanings."""
    sampler = Sampler(rng)
    register = rng.randrange(6)
    meanings: list[Meaning] = [sampler.talk(opening=True)] if rng.random() < 0.1 else []
    wanted = rng.randint(2, 5)
    while len(meanings) < wanted:
        meaning = sampler.meaning()
        if not is_held_out_meaning(meaning):
            meanings.append(meaning)
    if rng.random() < 0.06:
        meanings[-1] = sampler.talk(opening=False)
    sentences = [
        realise(language, meaning, Style(rng.getrandbits(32), register)) for meaning in meanings
    ]
    return ("" if language in SPACELESS else " ").join(sentences)


def _start(language: str, text: str) -> str:
    return text[:2] if language in SPACELESS else text.split()[0]


def held_out_words() -> list[Noun | Adjective | Verb]:
    """All words that no document uses."""
    words = lexicon()
    everything: tuple[Noun | Adjective | Verb, ...] = (
        *words.nouns,
        *words.adjectives,
        *words.verbs,
    )
    return [word for word in everything if is_held_out_word(word)]


def candidate(rng: random.Random, unseen: bool) -> Meaning | None:
    """A held-out meaning with one unseen word or with none, if the draw gives one."""
    sampler = Sampler(rng)
    if unseen:
        sampler.forced = draw(rng, held_out_words(), 0.0)
    meaning = sampler.long_meaning()
    used = concepts(meaning)
    if sampler.forced:
        return meaning if used.count(sampler.forced.concept) == 1 else None
    return meaning if is_held_out_meaning(meaning) else None


def paired_sentences(n: int, seed: int) -> list[dict[str, str]]:
    """Held-out meanings in all six languages, with varied first words and 8 to 25 English words."""
    return [pair for _, pair in paired_meanings(n, seed)]


def paired_meanings(n: int, seed: int) -> list[tuple[Meaning, dict[str, str]]]:
    """The meanings of `paired_sentences`, each with its sentences."""
    rng = random.Random(f"paired:{seed}")
    pairs: list[tuple[Meaning, dict[str, str]]] = []
    starts: Counter[str] = Counter()
    seen: set[str] = set()
    names = {name.name.split()[0] for name in lexicon().names}
    most = 1 + n // 12
    while len(pairs) < n:
        meaning = candidate(rng, unseen=len(pairs) % 3 == 0)
        if meaning is None:
            continue
        pair = {
            language: realise(language, meaning, Style(rng.getrandbits(32), 1))
            for language in LANGUAGES
        }
        first = [f"{language}:{_start(language, text)}" for language, text in pair.items()]
        named = any(text.startswith(tuple(names)) for text in pair.values())
        long_enough = 8 <= len(pair["english"].split()) <= 25 and len(pair["basque"].split()) >= 6
        fresh = all(starts[start] < most for start in first) and pair["english"] not in seen
        if not long_enough or not fresh or (named and starts["name"] >= most):
            continue
        starts.update(first)
        starts["name"] += named
        seen.add(pair["english"])
        pairs.append((meaning, pair))
    return pairs
