"""Prompts to token ids, to batches with little padding, and tokens back to readable text."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from saescope.engine.lm import LM
from saescope.errors import PromptError, SourceError
from saescope.sources.prompts import Prompt, PromptSet
from saescope.sources.scripts import is_unspaced


def tokenize(lm: LM, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of every prompt as its tokenizer makes them, chats through the chat template.

    Raises PromptError for a prompt that is empty or longer than the model's context.
    """
    return [prompt_ids(lm, prompt) for prompt in prompts]


def prompt_ids(lm: LM, prompt: Prompt, *, thinking: bool | None = None) -> list[int]:
    """Token ids of one prompt; `thinking` is what a chat template is told, where it is told."""
    row = _ids(lm.tokenizer, prompt, {} if thinking is None else {"enable_thinking": thinking})
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
    return row


def beginning(lm: LM, prompt: Prompt, share: float) -> Prompt:
    """The first `share` of a text's tokens, up to where a word ends, so that there is something to go on from.

    Scripts without spaces end anywhere between two tokens that are whole characters. Raises PromptError for a share
    that is none, a chat, and a text too short to be cut.
    """
    if not 0 < share < 1:
        raise PromptError(f"--cut is {share}: it is a share of each prompt, between 0 and 1")
    if prompt.text is None:
        raise PromptError(f"prompt {prompt.id} is a chat: only texts can be cut")
    ids = prompt_ids(lm, prompt)
    whole = str(lm.tokenizer.decode(ids, skip_special_tokens=True))
    for n in range(round(share * len(ids)), 0, -1):
        head = str(lm.tokenizer.decode(ids[:n], skip_special_tokens=True))
        if head.strip() and whole.startswith(head) and _between_words(head, whole[len(head) :]):
            return replace(prompt, text=head)
    raise PromptError(
        f"prompt {prompt.id} has no word that ends in its first {100 * share:g} %: use longer prompts"
    )


def _between_words(head: str, rest: str) -> bool:
    """Whether no word goes on from `head` into `rest`."""
    if not rest or unicodedata.category(rest[0]).startswith("M") or rest[0] in "\u200c\u200d":
        return False
    return not (head[-1].isalnum() and rest[0].isalnum()) or is_unspaced(rest[0])


def refuse_single_tokens(lm: LM, sets: Sequence[PromptSet]) -> None:
    """Raises PromptError for a set of which no prompt has a second token: position 0 does not count."""
    for group in sets:
        if all(len(row) == 1 for row in tokenize(lm, group.prompts)):
            raise PromptError(
                f"set {group.name!r} has no scored position: all its prompts are one token long and position 0 does "
                "not count; use longer prompts, or --keep-pos0"
            )


def _ids(tokenizer: Any, prompt: Prompt, options: Mapping[str, bool]) -> list[int]:
    if prompt.text is not None:
        return list(tokenizer(prompt.text, verbose=False)["input_ids"])
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages or ()]
    if tokenizer.chat_template is None:
        raise PromptError(
            f"prompt {prompt.id} is a chat, but the model's tokenizer has no chat template: use text"
        )
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=turns[-1]["role"] != "assistant", **options
        )
    except Exception as error:  # templates raise what they like
        raise PromptError(f"prompt {prompt.id} does not fit the chat template: {error}") from error
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


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
