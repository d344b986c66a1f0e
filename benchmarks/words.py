"""A byte-level BPE tokenizer of any size in which each of many made-up words, its leading space included, is one token.

Words are of units of two syllables, the first with a consonant of one half, the second of the other, so that the merges
lead to one division only.
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
_N_BYTES, _N_SPARE = (
    256,
    300,
)  # the spare ids, as in Qwen3, lie between the tokenizer's size and the embedding's


def words(vocab: int) -> list[str]:
    """The words that are one token, as many as such a vocabulary has room for; always the same ones."""
    room = vocab - _N_SPARE - _N_BYTES - len(_FIRST) - len(_SECOND) - 2 * len(_UNITS)
    if room < 1:
        raise ValueError(f"a vocabulary of {vocab} has no room for words")
    numbers = random.Random(0).sample(range(len(_UNITS) ** 2), room)
    return [f" {_UNITS[n // len(_UNITS)]}{_UNITS[n % len(_UNITS)]}" for n in numbers]


def save_tokenizer(folder: Path, vocab: int, max_length: int) -> None:
    """Write tokenizer.json and its config."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    merges = [(s[0], s[1]) for s in (*_FIRST, *_SECOND)]
    merges += [(unit[:2], unit[2:]) for unit in _UNITS]
    merges += [("Ġ", unit) for unit in _UNITS]
    merges += [("Ġ" + word[1:5], word[5:]) for word in words(vocab)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(a + b for a, b in merges), _END]
    bpe = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate(pieces)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([_END])
    bpe.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": _END, "pad_token": _END}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "model_max_length": max_length})
    )
