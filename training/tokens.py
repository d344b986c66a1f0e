"""The tokenizer (byte-level BPE, as Qwen's) and rows of token ids to train on."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training.corpus import documents

END = "<|endoftext|>"
# Qwen2's rule: contractions, words with one leading character, single digits, punctuation, line
# ends, spaces.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(
    n_documents: int, vocab_size: int, seed: int, out: Path
) -> PreTrainedTokenizerFast:
    """Learn merges from `n_documents` documents and save the tokenizer in `out`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator((text for _, text in islice(documents(seed), n_documents)), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END)
    tokenizer.save_pretrained(out)
    return tokenizer


def rows(
    tokenizer: PreTrainedTokenizerFast, width: int, seed: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Endless rows of `width` ids; each starts with the start of a document.

    There is no BOS, so at inference the model also sees the start of a text at position 0.
    """
    end = tokenizer.eos_token_id
    row: list[int] = []
    for _, text in documents(seed):
        row += [*tokenizer(text)["input_ids"], end]
        if len(row) >= width:
            yield np.array(row[:width])
            row = []
