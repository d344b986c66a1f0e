"""Tokenize prompts, and turn token ids back into readable text."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from saescope.arguments import PART
from saescope.engine.chat_template import chat_ids
from saescope.engine.lm import LM
from saescope.engine.text_ids import text_ids
from saescope.errors import PromptError, SourceError
from saescope.sources.characters import whole_characters
from saescope.sources.prompts import Prompt, PromptSet
from saescope.sources.scripts import is_unspaced

_JOINERS = "\u200c\u200d"  # zero-width characters that belong to the word around them


def tokenize(lm: LM, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the token ids of every prompt; chats go through the chat template.

    Raises PromptError for a prompt without tokens or with more than `lm.max_length`.
    """
    return [prompt_ids(lm, prompt) for prompt in prompts]


def prompt_ids(lm: LM, prompt: Prompt, *, thinking: bool | None = None) -> list[int]:
    """Return one prompt's token ids: what the model reads before it continues.

    Tokens that the tokenizer puts before a text, such as a BOS, occur once; those that it appends
    are left out. `thinking` goes to the chat template of a chat; None leaves the template's
    default. Raises like `tokenize`, and SourceError for an id that the model does not know.
    """
    if prompt.text is not None:
        parts = text_ids(lm.tokenizer, prompt.text)
        ids = [*parts.before, *parts.text]
    else:
        ids = chat_ids(lm.tokenizer, prompt, thinking)
    if not ids:
        raise PromptError(f"prompt {prompt.id} has no tokens: remove it")
    if len(ids) > lm.max_length:
        raise PromptError(
            f"prompt {prompt.id} has {len(ids):,} tokens, "
            f"more than the model's maximum of {lm.max_length:,}: shorten it"
        )
    if max(ids) >= lm.vocab_size:
        raise SourceError(
            f"prompt {prompt.id}: token id {max(ids)} is outside the vocabulary "
            f"({lm.vocab_size:,}): the tokenizer does not belong to this model"
        )
    return ids


def beginning(lm: LM, prompt: Prompt, share: float) -> Prompt:
    """Return the prompt cut at the last word boundary within the first `share` of its tokens.

    A script without spaces may be cut after any token that ends a character. Raises ArgumentError
    for a share outside 0-1, and PromptError for a chat or a text without such a boundary.
    """
    PART.check("cut", share)
    if prompt.text is None:
        raise PromptError(f"prompt {prompt.id} is a chat: only texts can be cut")
    ids = text_ids(lm.tokenizer, prompt.text).text
    text = str(lm.tokenizer.decode(ids))
    for n in range(round(share * len(ids)), 0, -1):
        head = str(lm.tokenizer.decode(ids[:n]))
        rest = text[len(head) :]
        if head.strip() and text.startswith(head) and _is_word_boundary(head, rest):
            return replace(prompt, text=head)
    raise PromptError(
        f"prompt {prompt.id} has no word boundary in the first {100 * share:g} %: "
        "use longer prompts"
    )


def _is_word_boundary(head: str, rest: str) -> bool:
    """Whether the text can be cut between `head` and `rest`."""
    if not rest:
        return False
    is_mark = unicodedata.category(rest[0]).startswith("M")
    if is_mark or rest[0] in _JOINERS:
        return False
    both_letters = head[-1].isalnum() and rest[0].isalnum()
    return not both_letters or is_unspaced(rest[0])


def refuse_single_tokens(lm: LM, sets: Sequence[PromptSet]) -> None:
    """Raise PromptError for a set whose prompts are all one token long: position 0 does not count.

    Each set is tokenized only up to its first longer prompt.
    """
    for group in sets:
        if all(len(prompt_ids(lm, prompt)) == 1 for prompt in group.prompts):
            raise PromptError(
                f"set {group.name!r} has no scored position: all its prompts are one token long "
                "and position 0 does not count; use longer prompts, or set keep_pos0=True"
            )


class TokenText:
    """Text of a token id; escaped bytes (`\\xe5`) if the token is an incomplete character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._cache: dict[int, bytes] = {}

    def __call__(self, token_id: int) -> str:
        """Return the text of one token, including its leading space."""
        return self._bytes(token_id).decode("utf-8", "backslashreplace")

    def in_context(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token of a sequence; together they are the decoded text.

        A character that several tokens hold belongs to the last of them.
        """
        texts = whole_characters([self._bytes(token_id) for token_id in ids])
        decoded = self._decode(ids)
        joined = "".join(texts)
        # SentencePiece begins a text with a space of its own, and drops it when it decodes.
        if joined != decoded and joined.removeprefix(" ") == decoded:
            first = next(n for n, text in enumerate(texts) if text)
            texts[first] = texts[first].removeprefix(" ")
        return texts

    def _bytes(self, token_id: int) -> bytes:
        if token_id not in self._cache:
            self._cache[token_id] = self._read_bytes(token_id)
        return self._cache[token_id]

    def _read_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of a token, including its leading space."""
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        text = self._decode([token_id])
        if isinstance(piece, bytes):
            return piece
        if not isinstance(piece, str):
            return text.encode("utf-8", "surrogatepass")
        if "\ufffd" in text:
            data = _stored_bytes(piece)
            if data is not None:
                return data
        # SentencePiece writes a leading space as ▁, and drops it when it decodes a single token.
        lost_space = piece.startswith("▁") and not text.startswith(" ")
        return (" " + text if lost_space else text).encode("utf-8", "surrogatepass")

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _stored_bytes(piece: str) -> bytes | None:
    """Return the bytes that a vocabulary writes as `<0xE5>` or in byte-level BPE's alphabet."""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", piece):  # SentencePiece's byte fallback
        return bytes([int(piece[3:5], 16)])
    if all(char in _BYTE_OF for char in piece):
        return bytes(_BYTE_OF[char] for char in piece)
    return None


def _byte_of() -> dict[str, int]:
    """Return byte-level BPE's alphabet: printable bytes map to themselves, others to U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_of()
