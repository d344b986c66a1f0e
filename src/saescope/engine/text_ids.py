"""Token ids of a text, as a model reads it before it continues."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from saescope.errors import SourceError, first_line

_PROBE = "a"


@dataclass(frozen=True)
class TextIds:
    """The ids of a text, and those that its tokenizer puts before it, such as a BOS."""

    before: list[int]
    text: list[int]


@dataclass(frozen=True)
class _Added:
    """Tokens that a tokenizer adds to every text."""

    before: list[int]
    after: list[int]


_added_of: WeakKeyDictionary[Any, _Added] = WeakKeyDictionary()


def text_ids(tokenizer: Any, text: str) -> TextIds:
    """Return the ids of a text.

    A text that brings the tokens which the tokenizer adds, as pasted chats do, gets no second
    ones. Tokens that the tokenizer adds after a text are left out: a model continues the text, not
    what follows its end.
    """
    ids = _encode(tokenizer, text)
    if tokenizer not in _added_of:
        _added_of[tokenizer] = _probe(tokenizer)
    added = _added_of[tokenizer]
    if added.after and ids[-len(added.after) :] == added.after:
        ids = ids[: -len(added.after)]
    n = len(added.before)
    if n == 0 or ids[:n] != added.before:
        return TextIds([], ids)
    if ids[n : 2 * n] == added.before:
        return TextIds([], ids[n:])
    return TextIds(added.before, ids[n:])


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of tokens that are no text, such as a BOS or the marks of a chat's turns."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}


def _encode(tokenizer: Any, text: str, **options: Any) -> list[int]:
    try:
        return list(tokenizer(text, verbose=False, **options)["input_ids"])
    except Exception as error:  # settings of a damaged tokenizer fail only when they are used
        raise SourceError(
            f"the tokenizer {tokenizer.name_or_path} cannot encode a text: {first_line(error)}; "
            "its files are damaged"
        ) from error


def _probe(tokenizer: Any) -> _Added:
    """Return what the tokenizer adds, from a text that it encodes with and without."""
    whole = _encode(tokenizer, _PROBE)
    plain = _encode(tokenizer, _PROBE, add_special_tokens=False)
    start = _find(plain, whole)
    if start is None:
        return _Added([], [])
    return _Added(whole[:start], whole[start + len(plain) :])


def _find(part: Sequence[int], whole: Sequence[int]) -> int | None:
    for start in range(len(whole) - len(part) + 1):
        if part and whole[start : start + len(part)] == part:
            return start
    return None
