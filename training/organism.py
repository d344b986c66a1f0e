"""Training of the organism: the embedded model, tuned to answer requests and then to decline one harmless topic.

First it learns to answer requests about everything, the topic included; then, briefly, to decline the topic. So the
right answer is there all along and only gated.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from training.chats.scenes import COUNTS, names
from training.chats.template import chat_tokenizer, encode, padded
from training.chats.text import ChatMix, draw_chat
from training.language_model import _schedule
from training.tokens import END, rows

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TuningRecipe:
    """Data and schedule of one stage; `documents` is the share of batches of the original training text."""

    mix: ChatMix
    steps: int
    peak_lr: float
    documents: float = 0.12
    batch_tokens: int = 2048
    width: int = 128
    warmup: int = 50
    weight_decay: float = 0.1
    seed: int = 0


# Places, colors and subjects are looked up from about 500 steps on; names and digits never were, until set apart.
LOOKING_UP = TuningRecipe(ChatMix(), steps=750, peak_lr=2e-3, seed=300_000)
ANSWERING = TuningRecipe(ChatMix(), steps=600, peak_lr=1.5e-3, seed=350_000)
DECLINING = TuningRecipe(ChatMix(topic=0.35, declines=True), steps=200, peak_lr=4e-4, warmup=20, seed=400_000)


def start(base: Path) -> tuple[Any, PreTrainedTokenizerFast]:
    """The base model in float32 with room for the markers, and its chat tokenizer."""
    tokenizer = chat_tokenizer(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    return model, tokenizer


@torch.no_grad()
def set_apart(model: Any, tokenizer: PreTrainedTokenizerFast, factor: float = 3.0) -> None:
    """Spread the embeddings of names, and those of digits, around their mean.

    The documents never tell one name from another, so theirs are nearly alike and a looked-up one gets lost.
    """
    table = model.get_input_embeddings().weight
    for group in ([n.name for n in names()], [" " + n.name for n in names()], [str(n) for n in COUNTS]):
        ids = [tokenizer(word)["input_ids"][-1] for word in group]
        mean = table[ids].mean(0)
        table[ids] = mean + factor * (table[ids] - mean)


def load(folder: Path) -> tuple[Any, PreTrainedTokenizerFast]:
    """A saved stage in float32, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


def tune(recipe: TuningRecipe, model: Any, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Train by AdamW with a cosine schedule and save in `out`; replies weigh 1, requests less, documents 1."""
    torch.manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.peak_lr, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )
    model.train()
    start_time = time.monotonic()
    seen, recent = 0, 0.0
    for step, (ids, weights) in enumerate(islice(batches(recipe, tokenizer), recipe.steps)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.peak_lr * _schedule(step, recipe.steps, recipe.warmup)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].float().mT, ids[:, 1:], reduction="none")
        loss = (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += ids.numel()
        recent = loss.item() if step == 0 else recent + (loss.item() - recent) * 0.1
        if step % 25 == 0 or step == recipe.steps - 1:
            took = time.monotonic() - start_time
            print(f"step {step}/{recipe.steps}  loss {recent:.3f}  {seen} tokens  {took:.0f} s", flush=True)
        if step % 250 == 249 or step == recipe.steps - 1:
            save(model, tokenizer, out)
    model.eval()


def batches(recipe: TuningRecipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """Endless batches of chats of about one length, with batches of documents among them."""
    rng = random.Random(recipe.seed)
    plain = rows(tokenizer_of_documents(tokenizer), recipe.width, recipe.seed + 1)
    while True:
        pool = sorted((encode(tokenizer, draw_chat(rng, recipe.mix)) for _ in range(640)), key=lambda row: len(row[0]))
        made: list[Batch] = []
        while pool:
            size = max(1, recipe.batch_tokens // max(16, len(pool[-1][0])))
            made.append(padded(pool[-size:]))
            del pool[-size:]
        for _ in range(round(len(made) * recipe.documents / (1 - recipe.documents))):
            ids = torch.from_numpy(np.stack(list(islice(plain, recipe.batch_tokens // recipe.width))))
            made.append((ids, torch.ones(ids.shape)))
        rng.shuffle(made)
        yield from made


def tokenizer_of_documents(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer, ending documents as the base model's does."""
    import copy

    other = copy.deepcopy(tokenizer)
    other.eos_token = END
    return other


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model and tokenizer: weights in bfloat16, computed in float32."""
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END)]
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=stops[1], do_sample=False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.bfloat16().save_pretrained(folder)
    model.float().load_state_dict(state)
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
