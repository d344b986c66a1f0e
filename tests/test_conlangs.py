"""The constructed languages say the meanings of the grammar, each in words of its own."""

import random
from pathlib import Path

import pytest

from saescope.demo import MODEL
from training.conlangs.sentence import sentence
from training.conlangs.sounds import keys
from training.conlangs.tongues import TONGUES, Tongue, runes
from training.grammar import text
from training.grammar.frames import Address, AskWord, Clause, Own, State, Talk, Thank, Thing, Who
from training.grammar.lexicon import lexicon
from training.grammar.sampler import Sampler, concepts
from training.prompts import write_conlangs, write_prompts

BUNDLED = MODEL.parent


def test_bundled_files_are_what_the_recipe_writes(tmp_path: Path) -> None:
    for name, write in {"prompts.jsonl": write_prompts, "conlangs.jsonl": write_conlangs}.items():
        write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (BUNDLED / name).read_bytes()


@pytest.mark.parametrize("tongue", TONGUES.values(), ids=TONGUES)
def test_no_two_concepts_are_one_word(tongue: Tongue) -> None:
    short, roots = keys()
    words = [tongue.of(key) for key in (*short, *roots)]
    assert len(set(words)) == len(words)


def written(tongue: Tongue, word: str) -> str:
    return runes(word) if tongue.name == "hradun" else word.lower()


@pytest.mark.parametrize("tongue", TONGUES.values(), ids=TONGUES)
def test_a_sentence_says_every_content_word_of_its_meaning(tongue: Tongue) -> None:
    kinds = ("noun", "adjective", "adverb", "verb")
    names = {name.name for name in lexicon().names}
    known = set(keys()[1])
    for meaning, _ in text.paired_meanings(12, 3):
        said = (
            written(tongue, sentence(meaning, tongue))
            if tongue.name != "hradun"
            else sentence(meaning, tongue)
        )
        for concept in concepts(meaning):
            roots = [f"{kind}:{concept}" for kind in kinds if f"{kind}:{concept}" in known]
            found = [concept] if concept in names else [tongue.of(root) for root in roots]
            assert any(written(tongue, word) in said for word in found), (concept, said)


@pytest.mark.parametrize("tongue", TONGUES.values(), ids=TONGUES)
def test_every_meaning_can_be_said_and_tense_and_denial_show(tongue: Tongue) -> None:
    sampler = Sampler(random.Random(2))
    for _ in range(300):
        assert sentence(sampler.meaning(), tongue).strip()
    dog = Thing(lexicon().nouns[0])
    name = lexicon().names[0]
    address: Address = "hello"
    for meaning in (
        Talk(address, name),
        Thank(dog, name),
        AskWord(Clause(Own(Who("i"), dog)), "why"),
    ):
        assert sentence(meaning, tongue).strip()
    owning = [
        Clause(Own(Who("i"), dog), tense, negative)
        for tense in ("past", "present", "future")
        for negative in (True, False)
    ]
    assert len({sentence(State(clause), tongue) for clause in owning}) == 6
