"""What of a reply is its answer, and what is thinking.

Models mark thoughts with pairs such as `<think>` and `</think>`, or with the channels of gpt-oss
(harmony), of which only `final` is the answer.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saescope.sources.prompts import Prompt

_PAIRS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
)
_CLOSING = dict(_PAIRS)


def _any_of(marks: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern of marks that are not quoted, as in a text about them."""
    return re.compile("(?<![`\"'“‘«])(?:" + "|".join(map(re.escape, marks)) + ")")


_MARK = _any_of([mark for pair in _PAIRS for mark in pair])
_OPEN_AT_END = re.compile("(" + "|".join(re.escape(opening) for opening, _ in _PAIRS) + r")\s*\Z")
_CHANNEL = "<|channel|>"
_CHANNEL_MESSAGE = re.compile(
    r"<\|channel\|>\s*(?P<name>\w+)(?:(?!<\|message\|>).)*<\|message\|>"
    r"(?P<text>.*?)(?=<\|(?:end|return|call|start|channel)\|>|\Z)",
    re.DOTALL,
)
_THINKING_CHANNEL_AT_END = re.compile(
    r"<\|channel\|>\s*(?:analysis|commentary)(?:(?!<\|message\|>).)*<\|message\|>\s*\Z", re.DOTALL
)
# Harmony without its marks, which are lost where special tokens are left out.
_BARE_THINKING = re.compile(r"\s*(?:analysis|commentary)(?=\S)")
_BARE_FINAL = "assistantfinal"
# A word such as "analysis:" or "analysises" begins an ordinary text.
_BARE_UNFINISHED = re.compile(r"\s*analysis(?=[^\W\d_a-z])")


@dataclass(frozen=True)
class AnswerText:
    """The answer in a reply.

    `start` is the position at which it begins, 0 without thinking. A reply is `unfinished` if it
    ends inside its thinking; `opening` then marks the thought.

    >>> from saescope.engine.answers import read_answer
    >>> read_answer("<think>The user greets me.</think>Good morning.").text
    'Good morning.'
    >>> read_answer("<think>The user gr").unfinished
    True
    """

    text: str
    start: int = 0
    unfinished: bool = False
    opening: str = ""


def read_answer(reply: str) -> AnswerText:
    """Return the answer in a reply, with or without special tokens."""
    if _CHANNEL in reply:
        return _final_channel(reply)
    if _BARE_THINKING.match(reply) and _BARE_FINAL in reply:
        start = reply.rindex(_BARE_FINAL) + len(_BARE_FINAL)
        return AnswerText(reply[start:].lstrip(), start)
    if _BARE_UNFINISHED.match(reply):
        return AnswerText("", len(reply), unfinished=True, opening=_thinking_channel())
    return _outside_pairs(reply)


def open_thought(prompt: Prompt, rendered: str) -> str:
    """Return the mark of the thought in which a prompt ends, empty if there is none.

    `rendered` is the end of the prompt as the model reads it: some templates begin the thought. A
    chat may also end in an assistant's unfinished thought.
    """
    if _THINKING_CHANNEL_AT_END.search(rendered):
        return _thinking_channel()
    at_end = _OPEN_AT_END.search(rendered)
    if at_end:
        return at_end.group(1)
    last = prompt.messages[-1] if prompt.messages else None
    if last is not None and last.role == "assistant":
        return read_answer(last.text).opening
    return ""


@dataclass(frozen=True)
class ReplyParts:
    """The answer in generated tokens, and the number of tokens before it."""

    answer: str
    unfinished: bool
    n_thinking: int


_PROMPT_END = 64  # tokens of a prompt that may hold the mark of a thought


def reply_parts(
    tokenizer: Any, prompt: Prompt, prompt_ids: Sequence[int], ids: Sequence[int]
) -> ReplyParts:
    """Return the answer in the tokens `ids` that follow a prompt."""
    opening = open_thought(prompt, str(tokenizer.decode(list(prompt_ids)[-_PROMPT_END:])))
    answer = read_answer(opening + str(tokenizer.decode(list(ids))))
    if answer.start == 0 and not answer.unfinished:
        text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
        return ReplyParts(text, unfinished=False, n_thinking=0)
    text = answer.text
    for token in set(ids) & set(tokenizer.all_special_ids):
        text = text.replace(str(tokenizer.decode([token])), "")
    offset = answer.start - len(opening)
    if answer.unfinished:
        return ReplyParts(text, unfinished=True, n_thinking=len(ids))
    n_thinking = bisect_left(
        range(len(ids) + 1), offset, key=lambda n: len(str(tokenizer.decode(list(ids[:n]))))
    )
    return ReplyParts(text, unfinished=False, n_thinking=min(n_thinking, len(ids)))


def _thinking_channel() -> str:
    return f"{_CHANNEL}analysis<|message|>"


def _final_channel(reply: str) -> AnswerText:
    """Return the text of harmony's final channel, which a prompt may have begun."""
    before = re.split(r"<\|(?:channel|start|end|return|call)\|>", reply, maxsplit=1)[0]
    if before.strip():
        return AnswerText(before)
    messages = list(_CHANNEL_MESSAGE.finditer(reply))
    finals = [message for message in messages if message["name"] == "final"]
    if not finals:
        return AnswerText("", len(reply), unfinished=True, opening=_thinking_channel())
    return AnswerText("".join(final["text"] for final in finals), finals[0].start("text"))


def _outside_pairs(reply: str) -> AnswerText:
    """Return what is outside of marked thoughts; text before a closing mark alone is a thought."""
    kept: list[str] = []
    position = 0
    while mark := _MARK.search(reply, position):
        closing = _CLOSING.get(mark.group())
        if closing is None:
            kept, position = [], mark.end()
            continue
        kept.append(reply[position : mark.start()])
        end = reply.find(closing, mark.end())
        if end < 0:
            return AnswerText("".join(kept), len(reply), unfinished=True, opening=mark.group())
        position = end + len(closing)
    if position == 0:
        return AnswerText(reply)
    kept.append(reply[position:])
    return AnswerText("".join(kept).lstrip(), position)
