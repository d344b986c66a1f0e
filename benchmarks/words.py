"""A byte-level BPE tokenizer of any size, in which each of many invented words is one token.

A word includes its leading space and consists of units of two syllables. First and second
syllables use disjoint consonants, so the merges split each word in one way only.
"""

import json
import random
from itertools import product
from pathlib import Path

_VOWELS = "aeiou"
_FIRST = [c + v for c, v in product("bdfgjklmnp", _VOWELS)]
_SECOND = [c + v for c, v in product("qrstvwxyzc", _VOWELS)]
_UNITS = [a + b for a, b in product(_FIRST, _SECOND)]
_END = "<|endoftext|>"
_N_BYTES = 256
_N_SPARE = 300  # ids between the tokenizer's size and the embedding's, as Qwen3 has them


def words(vocab: int) -> list[str]:
    """The words that are one token in a vocabulary of this size; the same list every time."""
    n_syllables, n_units = len(_FIRST) + len(_SECOND), len(_UNITS)
    n_words = vocab - _N_SPARE - _N_BYTES - n_syllables - 2 * n_units
    if n_words < 1:
        raise ValueError(f"a vocabulary of {vocab} has no room for words")
    numbers = random.Random(0).sample(range(n_units**2), n_words)
    pairs = (divmod(number, n_units) for number in numbers)
    return [f" {_UNITS[first]}{_UNITS[second]}" for first, second in pairs]


def save_tokenizer(folder: Path, vocab: int, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    merges = [(syllable[0], syllable[1]) for syllable in (*_FIRST, *_SECOND)]
    merges += [(unit[:2], unit[2:]) for unit in _UNITS]
    merges += [("Ġ", unit) for unit in _UNITS]
    merges += [("Ġ" + word[1:5], word[5:]) for word in words(vocab)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(left + right for left, right in merges), _END]
    ids = {token: number for number, token in enumerate(tokens)}
    bpe = Tokenizer(models.BPE(vocab=ids, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([_END])
    bpe.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": _END,
        "pad_token": _END,
        "model_max_length": max_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
