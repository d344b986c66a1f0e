"""What a tokenizer makes of text: bytes and characters a token, fragments of characters, and words in their pieces."""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, groupby
from statistics import median_low

from saescope.sources.scripts import is_unspaced

_BYTE = re.compile(rb"(\\x[89a-f][0-9a-f])")
_STRETCH = 3
_APOSTROPHES = "'’ʼ"


@dataclass(frozen=True)
class Pieces:
    """One prompt's tokens: their texts as stored, and the bytes that each stands for."""

    texts: tuple[str, ...]
    data: tuple[bytes, ...]

    @classmethod
    def of(cls, texts: Sequence[str], prompt: str) -> "Pieces":
        r"""Tokens as a run stores them; `\xe5` is a byte unless the prompt itself says so at this place."""
        whole = prompt.encode("utf-8", "surrogatepass")
        data: list[bytes] = []
        at = 0
        for text in texts:
            data.append(_bytes(text.encode("utf-8", "surrogatepass"), whole, at))
            at += len(data[-1])
        return cls(tuple(texts), tuple(data))

    @cached_property
    def text(self) -> str:
        """The text that the tokens make together; a byte that is part of no character is a surrogate."""
        return b"".join(self.data).decode("utf-8", "surrogateescape")

    @property
    def fragments(self) -> int:
        """How many tokens are no whole characters by themselves."""
        return sum(not _whole(data) for data in self.data)

    def words(self) -> Iterator["Word"]:
        """Words with the tokens that hold them; a short stretch at a time in scripts written without spaces."""
        ends = list(accumulate(map(len, self.data)))
        for start, word in _words(self.text, set(ends)):
            last_byte = start + len(_encoded(word)) - 1
            yield Word(
                word, self.texts[bisect_right(ends, start) : bisect_right(ends, last_byte) + 1]
            )


@dataclass(frozen=True)
class Word:
    """A word, or a stretch of a text without spaces, and the tokens that hold it."""

    text: str
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """A word of a set in its pieces: one that takes the most, or the typical one."""

    word: str
    pieces: tuple[str, ...]
    prompt: str
    typical: bool


def samples(prompts: Sequence[tuple[str, Pieces]], n: int) -> list[Sample]:
    """For named prompts, `n` different words: those that split into the most pieces, and last a typical one.

    The typical word has the median number of pieces and of characters, or is nearest to it; the first one wins.
    """
    found: dict[str, tuple[Word, str]] = {}
    sizes: list[int] = []
    for name, pieces in prompts:
        for word in pieces.words():
            sizes.append(len(word.pieces))
            found.setdefault(word.text, (word, name))
    if not found or n < 1:
        return []
    words = list(found.values())
    usual, length = median_low(sizes), median_low(len(text) for text in found)
    typical = min(
        words, key=lambda one: (abs(len(one[0].pieces) - usual), abs(len(one[0].text) - length))
    )
    hardest = sorted(
        (one for one in words if one is not typical), key=lambda one: -len(one[0].pieces)
    )[: n - 1]
    return [
        Sample(word.text, word.pieces, name, (word, name) == typical)
        for word, name in [*hardest, typical]
    ]


def _bytes(stored: bytes, whole: bytes, at: int) -> bytes:
    """What a stored token stands for, where it begins at byte `at` of the whole text."""
    if rb"\x" not in stored:
        return stored
    data = b""
    for part in _BYTE.split(stored):
        escaped = _BYTE.fullmatch(part) and not whole.startswith(part, at + len(data))
        data += bytes([int(part[2:], 16)]) if escaped else part
    return data


@cache
def _whole(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@cache
def _kind(letter: str) -> str:
    """Whether a character is part of a word, of one written without spaces, or (empty) of none."""
    if unicodedata.category(letter)[0] not in "LMN":
        return ""
    return "spaceless" if is_unspaced(letter) else "word"


def _kinds(text: str) -> Iterator[tuple[str, str]]:
    """Every character and what it is; an apostrophe between letters is part of their word."""
    for n, letter in enumerate(text):
        inner = letter in _APOSTROPHES and 0 < n < len(text) - 1
        yield (
            letter,
            "word"
            if inner and _kind(text[n - 1]) == _kind(text[n + 1]) == "word"
            else _kind(letter),
        )


def _words(text: str, ends: set[int]) -> Iterator[tuple[int, str]]:
    """Every word with the byte it begins at; `ends` are the bytes at which tokens end."""
    at = 0
    for kind, group in groupby(_kinds(text), key=lambda pair: pair[1]):
        letters = "".join(letter for letter, _ in group)
        for part in _stretches(letters, at, ends) if kind == "spaceless" else [letters]:
            if kind and any(letter.isalpha() for letter in part):
                yield at, part
            at += len(_encoded(part))


def _stretches(letters: str, at: int, ends: set[int]) -> Iterator[str]:
    """Parts of at least a few characters that end where a token does."""
    part = ""
    for letter in letters:
        part += letter
        at += len(_encoded(letter))
        if len(part) >= _STRETCH and at in ends:
            yield part
            part = ""
    if part:
        yield part


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
