"""The constructed languages express the meanings of the grammar, each in its own words."""

import random
from pathlib import Path

import pytest

from saescope.demo import MODEL
from training.conlangs.sentence import sentence
from training.conlangs.sounds import keys
from training.conlangs.tongues import TONGUES, Tongue, runes
from training.grammar import text
from training.grammar.frames import (
    Address,
    AskWord,
    Clause,
    Own,
    State,
    Talk,
    Tense,
    Thank,
    Thing,
    Who,
)
from training.grammar.lexicon import lexicon
from training.grammar.sampler import Sampler, concepts
from training.prompts import write_conlangs, write_prompts

BUNDLED = MODEL.parent


def test_recipe_writes_the_bundled_files(tmp_path: Path) -> None:
    for name, write in {"prompts.jsonl": write_prompts, "conlangs.jsonl": write_conlangs}.items():
        write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (BUNDLED / name).read_bytes()


@pytest.mark.parametrize("tongue", TONGUES.values(), ids=TONGUES)
def test_every_concept_has_its_own_word(tongue: Tongue) -> None:
    short, roots = keys()
    words = [tongue.of(key) for key in (*short, *roots)]
    assert len(set(words)) == len(words)


def spelled(tongue: Tongue, word: str) -> str:
    """A word as it stands in a sentence, in lower case."""
    return runes(word) if tongue.name == "hradun" else word.lower()


@pytest.mark.parametrize("tongue", TONGUES.values(), ids=TONGUES)
def test_sentence_contains_every_content_word_of_its_meaning(tongue: Tongue) -> None:
    kinds = ("noun", "adjective", "adverb", "verb")
    names = {name.name for name in lexicon().names}
    _, roots = keys()
    for meaning, _ in text.paired_meanings(12, 3):
        words = sentence(meaning, tongue).lower()
        for concept in concepts(meaning):
            of_concept = [root for kind in kinds if (root := f"{kind}:{concept}") in roots]
            spellings = [tongue.of(root) for root in of_concept]
            if concept in names:
                spellings = [concept]
            assert any(spelled(tongue, word) in words for word in spellings), (concept, words)


@pytest.mark.parametrize("tongue", TONGUES.values(), ids=TONGUES)
def test_every_meaning_has_a_sentence_and_tense_and_negation_show(tongue: Tongue) -> None:
    sampler = Sampler(random.Random(2))
    for _ in range(300):
        assert sentence(sampler.meaning(), tongue).strip()
    dog = Thing(lexicon().nouns[0])
    name = lexicon().names[0]
    address: Address = "hello"
    owning = Own(Who("i"), dog)
    for meaning in (Talk(address, name), Thank(dog, name), AskWord(Clause(owning), "why")):
        assert sentence(meaning, tongue).strip()
    tenses: tuple[Tense, ...] = ("past", "present", "future")
    clauses = [Clause(owning, tense, negative) for tense in tenses for negative in (True, False)]
    assert len({sentence(State(clause), tongue) for clause in clauses}) == 6
