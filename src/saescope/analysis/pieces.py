"""What a tokenizer makes of text: bytes per token, fragments of characters, words in pieces."""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, compress, groupby
from statistics import median_low

from saescope.sources.characters import whole_characters
from saescope.sources.scripts import is_unspaced

_BYTE = re.compile(rb"(\\x[89a-f][0-9a-f])")
_STRETCH = 3  # characters taken for a word in scripts without spaces
_APOSTROPHES = "'’ʼ"


@dataclass(frozen=True)
class Sample:
    """A word of a set in its pieces: one that takes the most, or the typical one.

    In `pieces`, bytes of a split character are escaped; in `shown`, the last piece has it all.
    """

    word: str
    pieces: tuple[str, ...]
    shown: tuple[str, ...]
    prompt: str
    typical: bool


def shown_tokens(texts: Sequence[str], is_text: Sequence[bool], prompt: str) -> list[str]:
    """Return stored tokens of a prompt as text; special tokens, which are no text, as they are.

    A character that several tokens hold is in the last of them.
    """
    pieces = Pieces.of(list(compress(texts, is_text)), prompt).shown
    shown = iter(_without_added_space(pieces, prompt))
    return [next(shown) if text else stored for stored, text in zip(texts, is_text, strict=True)]


def _without_added_space(pieces: Sequence[str], prompt: str) -> Sequence[str]:
    """Drop the space that SentencePiece puts before a text."""
    if _leading_spaces("".join(pieces)) <= _leading_spaces(prompt):
        return pieces
    first = next(n for n, piece in enumerate(pieces) if piece)
    return [*pieces[:first], pieces[first].removeprefix(" "), *pieces[first + 1 :]]


def _leading_spaces(text: str) -> int:
    return len(text) - len(text.lstrip(" "))


def samples(prompts: Sequence[tuple[str, "Pieces"]], n: int) -> list[Sample]:
    """Return `n` different words of named prompts: those with the most pieces, then a typical one.

    The typical word is the first one nearest to the median number of pieces and of characters.
    """
    first_seen: dict[str, tuple[Word, str]] = {}
    sizes = []
    for name, pieces in prompts:
        for word in pieces.words():
            sizes.append(len(word.pieces))
            first_seen.setdefault(word.text, (word, name))
    if not first_seen or n < 1:
        return []
    typical = _typical_word([word for word, _ in first_seen.values()], sizes)
    others = [word for word, _ in first_seen.values() if word is not typical]
    hardest = sorted(others, key=lambda word: -len(word.pieces))[: n - 1]
    result = []
    for word in [*hardest, typical]:
        prompt = first_seen[word.text][1]
        sample = Sample(word.text, word.pieces, word.shown, prompt, typical=word is typical)
        result.append(sample)
    return result


def _typical_word(words: Sequence["Word"], sizes: Sequence[int]) -> "Word":
    usual_pieces = median_low(sizes)
    usual_length = median_low(len(word.text) for word in words)

    def distance(word: Word) -> tuple[int, int]:
        return abs(len(word.pieces) - usual_pieces), abs(len(word.text) - usual_length)

    return min(words, key=distance)


@dataclass(frozen=True)
class Word:
    """A word, or a stretch of a text without spaces, and the tokens that hold it."""

    text: str
    pieces: tuple[str, ...]
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Pieces:
    """One prompt's tokens: their texts as stored, and the bytes of each."""

    texts: tuple[str, ...]
    data: tuple[bytes, ...]

    @classmethod
    def of(cls, texts: Sequence[str], prompt: str) -> "Pieces":
        r"""Build from stored tokens; `\xe5` is a byte unless the prompt contains that text here."""
        prompt_bytes = prompt.encode("utf-8", "surrogatepass")
        data: list[bytes] = []
        start = 0
        for text in texts:
            data.append(_bytes(text.encode("utf-8", "surrogatepass"), prompt_bytes, start))
            start += len(data[-1])
        return cls(tuple(texts), tuple(data))

    @cached_property
    def text(self) -> str:
        """Joined text of the tokens; bytes outside characters become surrogates."""
        return b"".join(self.data).decode("utf-8", "surrogateescape")

    @cached_property
    def shown(self) -> tuple[str, ...]:
        """The text of each token; a character that several tokens hold is in the last of them."""
        return tuple(whole_characters(self.data))

    @property
    def fragments(self) -> int:
        """Number of tokens that are not whole characters."""
        return sum(not _is_whole(data) for data in self.data)

    def words(self) -> Iterator[Word]:
        """Words with the tokens that hold them.

        In scripts written without spaces, a short stretch counts as a word.
        """
        ends = list(accumulate(map(len, self.data)))
        for start, word in _words(self.text, set(ends)):
            last_byte = start + len(_encoded(word)) - 1
            first, last = bisect_right(ends, start), bisect_right(ends, last_byte)
            tokens = slice(first, last + 1)
            yield Word(word, self.texts[tokens], self.shown[tokens])


def _bytes(stored: bytes, prompt: bytes, start: int) -> bytes:
    """Return the bytes of a stored token that begins at byte `start` of the prompt."""
    if rb"\x" not in stored:
        return stored
    data = b""
    for part in _BYTE.split(stored):
        is_byte = _BYTE.fullmatch(part) and not prompt.startswith(part, start + len(data))
        data += bytes([int(part[2:], 16)]) if is_byte else part
    return data


@cache
def _is_whole(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _words(text: str, ends: set[int]) -> Iterator[tuple[int, str]]:
    """Yield every word with the byte it begins at; `ends` are the bytes at which tokens end."""
    start = 0
    for kind, group in groupby(_kinds(text), key=lambda pair: pair[1]):
        letters = "".join(letter for letter, _ in group)
        stretches: Iterator[str] = iter([letters])
        if kind == "unspaced":
            stretches = _stretches(letters, start, ends)
        for word in stretches:
            if kind and any(letter.isalpha() for letter in word):
                yield start, word
            start += len(_encoded(word))


def _kinds(text: str) -> Iterator[tuple[str, str]]:
    """Yield every character and its kind; an apostrophe between letters is part of their word."""
    for n, letter in enumerate(text):
        kind = _kind(letter)
        if letter in _APOSTROPHES and 0 < n < len(text) - 1:
            before, after = _kind(text[n - 1]), _kind(text[n + 1])
            if before == after == "word":
                kind = "word"
        yield letter, kind


@cache
def _kind(letter: str) -> str:
    """Return whether a character is part of a word, an unspaced script, or (empty) neither."""
    if unicodedata.category(letter)[0] not in "LMN":
        return ""
    return "unspaced" if is_unspaced(letter) else "word"


def _stretches(letters: str, start: int, ends: set[int]) -> Iterator[str]:
    """Yield stretches of at least a few characters that end where a token does."""
    stretch = ""
    for letter in letters:
        stretch += letter
        start += len(_encoded(letter))
        if len(stretch) >= _STRETCH and start in ends:
            yield stretch
            stretch = ""
    if stretch:
        yield stretch


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
