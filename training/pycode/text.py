"""Python documents for training, and prompts that training can never contain."""

import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from textwrap import dedent

from .snippets import Snippet
from .words import Vocabulary, has_held_out_word, stable_number

_DOCUMENT_LINES = range(2, 10)
_LINE_LENGTH = 96
_PROMPT_LENGTHS = range(25, 91)
_PROMPT_LINES = 3
_HELD_OUT_SLICE = 32
_HELD_OUT_WORD_SHARE = 0.3
_SAME_START_LIMIT = 3 / 40
_UNFINISHED_ENDS = (":", ",", "(", "[", "{")
_CLAUSE_STARTS = ("else", "elif", "except", "finally", "case")
_SINGLE_QUOTES_SHARE = 0.25


def document(rng: random.Random) -> str:
    """Return a snippet of 2 to 9 lines of valid Python without any held-out word or passage."""
    while True:
        text = _snippet(rng, 0.0)
        if has_held_out_word(text) or any(_is_held_out(passage) for passage in _passages(text)):
            continue
        return text


def held_out_prompts(n: int, seed: int) -> list[str]:
    """Return n distinct passages of one to three lines that no document contains."""
    rng = random.Random(f"held-out code {seed}")
    start_limit = max(3, math.floor(n * _SAME_START_LIMIT))
    starts: Counter[str] = Counter()
    prompts: list[str] = []
    while len(prompts) < n:
        wants_word = len(prompts) % 3 == 0
        prompt = _held_out_passage(rng, wants_word)
        if prompt not in prompts and starts[_start(prompt)] < start_limit:
            starts[_start(prompt)] += 1
            prompts.append(prompt)
    return prompts


def _snippet(rng: random.Random, held_out_share: float) -> str:
    """Return a snippet of the right number and width of lines."""
    while True:
        text = Snippet(rng, Vocabulary(rng, held_out_share)).text()
        lines = text.split("\n")
        if len(lines) in _DOCUMENT_LINES and max(map(len, lines)) <= _LINE_LENGTH:
            break
    if "'" not in text and '"""' not in text and rng.random() < _SINGLE_QUOTES_SHARE:
        return text.replace('"', "'")
    return text


def _held_out_passage(rng: random.Random, wants_word: bool) -> str:
    """Return a held-out passage that reads as a prompt, with or without a held-out word."""
    while True:
        text = _snippet(rng, _HELD_OUT_WORD_SHARE if wants_word else 0.0)
        candidates = [
            passage
            for passage in _passages(text)
            if _is_held_out(passage)
            and _reads_well(passage)
            and has_held_out_word(passage) == wants_word
        ]
        if candidates:
            return rng.choice(candidates)


def _passages(text: str) -> Iterator[str]:
    """Yield every run of one to three lines of a prompt's length, without its common indent."""
    lines = text.split("\n")
    for start, end in combinations(range(len(lines) + 1), 2):
        if end - start <= _PROMPT_LINES:
            passage = dedent("\n".join(lines[start:end]))
            if len(passage) in _PROMPT_LENGTHS:
                yield passage


def _is_held_out(passage: str) -> bool:
    """Say whether the passage falls in the slice of passages kept from the documents."""
    return stable_number(passage) % _HELD_OUT_SLICE == 0


def _reads_well(passage: str) -> bool:
    """Say whether the passage starts and ends like a piece of code someone would paste."""
    if passage != passage.strip() or passage.startswith(_CLAUSE_STARTS):
        return False
    last_line = passage.split("\n")[-1].lstrip()
    return not last_line.endswith(_UNFINISHED_ENDS) and not last_line.startswith("@")


def _start(prompt: str) -> str:
    """Return the first word of the prompt."""
    found = re.search(r"\w+", prompt)
    return found.group() if found else prompt
