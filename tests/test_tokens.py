"""Batches waste little and lose nothing; tokens show as readable text."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from conftest import Pair
from saescope.engine.batches import divide_into_batches
from saescope.engine.lm import load_lm
from saescope.engine.tokens import TokenText, tokenize
from saescope.errors import PromptError, SourceError
from saescope.sources.chats import Message
from saescope.sources.prompts import Prompt, texts


@given(st.lists(st.integers(1, 90), min_size=1, max_size=80), st.integers(1, 300), st.booleans())
def test_every_prompt_is_in_one_row_within_budget(
    lengths: list[int], budget: int, packed: bool
) -> None:
    batches = divide_into_batches(lengths, budget, packed=packed)
    assert sorted(i for batch in batches for row in batch for i in row) == list(range(len(lengths)))
    for batch in batches:
        width = max(sum(lengths[i] for i in row) for row in batch)
        assert len(batch) * width <= budget or batch == [[batch[0][0]]]
        assert packed or all(len(row) == 1 for row in batch)
    assert batches == divide_into_batches(lengths, budget, packed=packed)


def test_short_prompts_share_rows_and_long_ones_do_not() -> None:
    assert divide_into_batches([100, 5, 101, 6, 5, 99], 2048, packed=True) == [
        [[2], [0], [5], [3, 1, 4]]
    ]
    assert divide_into_batches([100, 5, 101, 6, 5, 99], 2048, packed=False) == [
        [[2], [0], [5]],
        [[3], [1], [4]],
    ]
    assert divide_into_batches([64] * 4, 128, packed=True) == [[[0], [1]], [[2], [3]]]


def test_token_text_is_whole_characters_or_bytes() -> None:
    tok = tiny.tokenizer([("Ġ", "t"), ("ã", "ģ")])
    text = TokenText(tok)
    ids = tok(" t\n日は")["input_ids"]
    assert [text(i) for i in ids] == [" t", "\n", "\\xe6", "\\x97", "\\xa5", "\\xe3\\x81", "\\xaf"]
    assert text(tok.eos_token_id) == "<|endoftext|>"


def test_chat_goes_through_the_template(tmp_path: Path) -> None:
    tok = tiny.tokenizer()
    turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    tok.chat_template = turns + "{% if add_generation_prompt %}<a>{% endif %}"
    lm = load_lm(tiny.save_model(tmp_path / "model", tok=tok), [0])
    question = Message("user", "hi")
    question_only = Prompt("1", "chat", messages=(question,))
    answered = Prompt("2", "chat", messages=(question, Message("assistant", "yo")))
    shown = [tok.decode(row) for row in tokenize(lm, [question_only, answered])]
    assert shown == ["<user>hi<a>", "<user>hi<assistant>yo"]


def test_chat_without_a_template_is_refused(pair: Pair) -> None:
    lm, _ = pair.load(0)
    with pytest.raises(PromptError, match="no chat template"):
        tokenize(lm, [Prompt("1", "chat", messages=(Message("user", "hi"),))])


def test_token_the_model_does_not_know_is_refused(pair: Pair, tmp_path: Path) -> None:
    lm, _ = pair.load(0)
    other = tiny.tokenizer([(a, b) for a in "abcdef" for b in "ghij"])
    with pytest.raises(SourceError, match="tokenizer does not belong"):
        tokenize(replace(lm, tokenizer=other), texts(["fj fj"])[0].prompts)
