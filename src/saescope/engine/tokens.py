"""Prompts to token ids, to batches with little padding, and tokens back to readable text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saescope.engine.lm import LM
from saescope.errors import PromptError, SourceError
from saescope.sources.prompts import Prompt, PromptSet

# A batch costs reading all weights once, about as much as this many tokens of arithmetic; weighed against padding.
_BATCH_COST_TOKENS = 32


@dataclass(frozen=True)
class Tokens:
    """One batch, padded on the right: causal attention never looks there, so padding changes no real position."""

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]


def tokenize(lm: LM, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of every prompt as its tokenizer makes them, chats through the chat template.

    Raises PromptError for a prompt that is empty or longer than the model's context.
    """
    rows = [_ids(lm.tokenizer, prompt) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if not row:
            raise PromptError(f"prompt {prompt.id} has no tokens: remove it")
        if len(row) > lm.max_length:
            raise PromptError(
                f"prompt {prompt.id} has {len(row):,} tokens, the model reads {lm.max_length:,}: shorten it"
            )
        if max(row) >= lm.vocab_size:
            raise SourceError(
                f"prompt {prompt.id} has token {max(row)}, the model knows {lm.vocab_size:,}: not its tokenizer"
            )
    return rows


def refuse_single_tokens(lm: LM, sets: Sequence[PromptSet]) -> None:
    """Raises PromptError for a set of which no prompt has a second token: position 0 does not count."""
    for group in sets:
        if all(len(row) == 1 for row in tokenize(lm, group.prompts)):
            raise PromptError(
                f"set {group.name!r} has no scored position: all its prompts are one token long and position 0 does "
                "not count; use longer prompts, or --keep-pos0"
            )


def _ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    if prompt.text is not None:
        return list(tokenizer(prompt.text, verbose=False)["input_ids"])
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages or ()]
    if tokenizer.chat_template is None:
        raise PromptError(f"prompt {prompt.id} is a chat, but the model's tokenizer has no chat template: use text")
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=turns[-1]["role"] != "assistant"
        )
    except Exception as error:  # templates raise what they like
        raise PromptError(f"prompt {prompt.id} does not fit the chat template: {error}") from error
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def plan_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Divide prompts into batches of at most `budget` tokens, padding included, longest first.

    Minimises padded tokens plus a fixed cost a batch, exactly, over all cuts of the prompts sorted by length. A prompt
    over the budget goes alone.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    best: list[float] = [0.0]
    cut: list[int] = [0]
    for end in range(1, len(order) + 1):
        options = []
        for start in range(end - 1, -1, -1):
            padded = lengths[order[start]] * (end - start)
            if padded > budget and end - start > 1:
                break
            options.append((best[start] + padded + _BATCH_COST_TOKENS, start))
        cost, start = min(options)
        best.append(cost)
        cut.append(start)
    batches: list[list[int]] = []
    end = len(order)
    while end > 0:
        batches.append(order[cut[end] : end])
        end = cut[end]
    return batches[::-1]


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> Tokens:
    """One batch of rows, short ones filled with 0 on the right."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return Tokens(ids.to(device), mask.to(device))


class TokenText:
    """Tokens as people read them: the text of a token, and bytes (`\\xe5\\xa4`) where it is no whole character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token_id: int) -> str:
        """The text of one token, its leading space kept."""
        if token_id not in self._known:
            self._known[token_id] = self._text(token_id)
        return self._known[token_id]

    def _text(self, token_id: int) -> str:
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        text = str(self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
        if not isinstance(piece, str):
            return text
        if "\ufffd" in text:
            return _escape(piece)
        return " " + text if piece.startswith("▁") and not text.startswith(" ") else text


def _escape(piece: str) -> str:
    if re.fullmatch(r"<0x[0-9A-F]{2}>", piece):  # SentencePiece's byte fallback
        return "\\x" + piece[3:5].lower()
    data = bytes(_BYTE_OF.get(char, 0x3F) for char in piece)
    return data.decode("utf-8", "backslashreplace")


def _byte_of() -> dict[str, int]:
    """Byte-level BPE's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


_BYTE_OF = _byte_of()
