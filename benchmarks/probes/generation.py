"""Measure greedy generation of 32 prompts: saescope and transformers' `generate`, one batch each.

Prints seconds of both in bfloat16 and float32, and the share of replies that are the same.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import saescope as ss
from benchmarks.probes.options import ModelOptions, add_model_options, model_options, probe_parser
from benchmarks.probes.timing import time_alternating
from benchmarks.words import words
from benchmarks.workloads import WORKLOADS
from saescope.engine.generate import generate_batch
from saescope.sources.prompts import Prompt

PROMPTS = 32


def main(options: ModelOptions, n_tokens: int, texts: Sequence[str]) -> None:
    """Measure and print."""
    figures: dict[str, object] = {"tokens": n_tokens, "prompts": len(texts)}
    for dtype in ("bfloat16", "float32"):
        ours, theirs = _Saescope(options, dtype), _Transformers(options, dtype)
        runs = {
            "saescope": partial(ours.replies, texts, n_tokens),
            "transformers": partial(theirs.replies, texts, n_tokens),
        }
        same = [a == b for a, b in zip(*(run() for run in runs.values()), strict=True)]
        figures[f"{dtype}, same"] = sum(same) / len(same)
        for name, seconds in time_alternating(runs, options.times, warm=True).items():
            figures[f"{dtype}, {name}"] = seconds
    print(json.dumps(figures))


class _Saescope:
    def __init__(self, options: ModelOptions, dtype: Any) -> None:
        self._lm = ss.load_lm(options.model, dtype=dtype, device=options.device)

    def replies(self, texts: Sequence[str], n_tokens: int) -> list[str]:
        prompts = [Prompt(f"{n}", "prompts", text=text) for n, text in enumerate(texts)]
        replies = generate_batch(self._lm, prompts, max_new_tokens=n_tokens)
        return [reply.text for reply in replies]


class _Transformers:
    def __init__(self, options: ModelOptions, dtype: Any) -> None:
        auto: Any = AutoModelForCausalLM  # its methods have no types
        self._model = auto.from_pretrained(
            options.model, dtype=dtype, device_map=None, trust_remote_code=False
        )
        self._model.eval().to(options.device)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(
            options.model, padding_side="left", trust_remote_code=False
        )
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    def replies(self, texts: Sequence[str], n_tokens: int) -> list[str]:
        batch = self._tokenizer(list(texts), return_tensors="pt", padding=True)
        batch = batch.to(self._model.device)
        with torch.inference_mode():
            ids = self._model.generate(
                **batch,
                max_new_tokens=n_tokens,
                do_sample=False,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        new = ids[:, batch["input_ids"].shape[1] :]
        replies: list[str] = self._tokenizer.batch_decode(new, skip_special_tokens=True)
        return replies


def _texts(args: argparse.Namespace) -> list[str]:
    """Return the lines of `--prompts`, or prompts of invented words for a made model."""
    if args.prompts is not None:
        lines = args.prompts.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.strip()][:PROMPTS]
    lm_vocabulary = words(args.vocab)
    lengths = WORKLOADS["short"].lengths[:PROMPTS]
    return ["".join(lm_vocabulary[n * 20 : n * 20 + length]) for n, length in enumerate(lengths)]


if __name__ == "__main__":
    from pathlib import Path

    parser = probe_parser("generation", __doc__)
    add_model_options(parser)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--prompts", type=Path, help="text file, one prompt per line")
    arguments = parser.parse_args()
    main(model_options(arguments), arguments.tokens, _texts(arguments))
