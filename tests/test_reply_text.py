"""Pieces of a streamed reply: whole characters, together the reply, nothing after a stop."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saescope.engine.lm import load_lm
from saescope.surfaces.server.reply_text import ReplyText

TOKENIZER = load_lm("saescope-tiny-chat", [0]).tokenizer
TEXTS = [
    "The lighthouse is red.",
    "今日はいい天気だ。 ",
    "🎈 ok",
    " def f(x):\n    return x",
    "ŭ",
    "naïve",
]


def pieces(ids: Sequence[int], stops: Sequence[str] = ()) -> list[str]:
    text = ReplyText(TOKENIZER, stops)
    return [*(text.add(token) for token in ids), text.finish()]


@given(st.lists(st.sampled_from(TEXTS), max_size=6).map("".join))
def test_pieces_of_a_text_are_the_text(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    shown = pieces(ids)
    assert "".join(shown) == TOKENIZER.decode(ids, skip_special_tokens=True) == text
    assert not any("\ufffd" in piece for piece in shown)


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40))
def test_pieces_of_any_tokens_are_what_they_decode_to(ids: list[int]) -> None:
    assert "".join(pieces(ids)) == TOKENIZER.decode(ids, skip_special_tokens=True)


@given(
    st.lists(st.sampled_from(TEXTS), min_size=1, max_size=5).map("".join),
    st.lists(st.sampled_from(["e is", "red", "天気", "return", "zzz", " ", "k🎈"]), min_size=1),
)
def test_nothing_of_a_stop_text_or_after_it_is_sent(text: str, stops: list[str]) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    ends = [text.index(stop) for stop in stops if stop in text]
    assert "".join(pieces(ids, stops)) == text[: min(ends, default=len(text))]


@pytest.mark.parametrize("stop", ["ab", "aab"])
def test_the_beginning_of_a_stop_text_is_sent_once_it_is_none(stop: str) -> None:
    text = ReplyText(TOKENIZER, [stop])
    a = TOKENIZER("a", add_special_tokens=False)["input_ids"][0]
    assert text.add(a) == ""
    assert text.finish() == "a"
