"""Batches waste little and lose nothing; tokens show as readable text."""

from hypothesis import given
from hypothesis import strategies as st

import tiny
from saescope.engine.tokens import TokenText, plan_batches


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 300))
def test_every_prompt_is_in_one_batch_within_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    assert batches == plan_batches(lengths, budget)


def test_like_lengths_go_together() -> None:
    batches = plan_batches([100, 5, 101, 6, 5, 99], 2048)
    assert [sorted(batch) for batch in batches] == [[0, 2, 5], [1, 3, 4]]


def test_token_text_is_whole_characters_or_bytes() -> None:
    tok = tiny.tokenizer([("Ġ", "t"), ("ã", "ģ")])
    text = TokenText(tok)
    ids = tok(" t\n日は")["input_ids"]
    assert [text(i) for i in ids] == [" t", "\n", "\\xe6", "\\x97", "\\xa5", "\\xe3\\x81", "\\xaf"]
    assert text(tok.eos_token_id) == "<|endoftext|>"
