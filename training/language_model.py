"""Training of the small Qwen3 model, and its loss beside that of a unigram and a bigram model."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from training.tokens import rows


@dataclass(frozen=True)
class LanguageModelRecipe:
    """Size and schedule of the language model."""

    d_model: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    d_mlp: int = 512
    width: int = 128
    batch: int = 32
    tokens: int = 9_000_000
    peak_lr: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.1
    seed: int = 0


def train_language_model(
    recipe: LanguageModelRecipe, tokenizer: PreTrainedTokenizerFast, out: Path
) -> None:
    """Train with AdamW and a cosine schedule on fresh documents; save in bfloat16."""
    torch.manual_seed(recipe.seed)
    model = Qwen3ForCausalLM(_config(recipe, tokenizer))
    decayed = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim != 2]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(0.9, 0.95))
    steps = recipe.tokens // (recipe.batch * recipe.width)
    compiled: Callable[..., Any] = torch.compile(model)
    stream = rows(tokenizer, recipe.width, recipe.seed + 1)
    start = time.monotonic()
    for step in range(steps):
        batch = torch.from_numpy(np.stack(list(islice(stream, recipe.batch))))
        for group in optimizer.param_groups:
            group["lr"] = recipe.peak_lr * schedule(step, steps, recipe.warmup)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = compiled(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps - 1:
            print(
                f"step {step}/{steps}  loss {loss.item():.3f}  {time.monotonic() - start:.0f} s",
                flush=True,
            )
    # bfloat16 halves the package; float32 in the config makes every reader compute in float32.
    model.bfloat16().save_pretrained(out)
    model.config.dtype = torch.float32
    model.config.save_pretrained(out)


def _config(recipe: LanguageModelRecipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    return Qwen3Config(
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.d_model // recipe.heads,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )


def schedule(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate: a linear warm-up, then a cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.inference_mode()
def held_out_loss(model: Qwen3ForCausalLM, ids: npt.NDArray[np.int64]) -> float:
    """Mean next-token cross-entropy in nats over rows (n, width), n a multiple of 32."""
    losses = [
        model(input_ids=batch, labels=batch, use_cache=False).loss.item()
        for batch in map(torch.from_numpy, np.split(ids, len(ids) // 32))
    ]
    return float(np.mean(losses))


def ngram_losses(
    train: npt.NDArray[np.int64], test: npt.NDArray[np.int64], vocab_size: int
) -> tuple[float, float]:
    """Nats per token of a unigram and an interpolated bigram model counted on `train`."""
    unigram = np.bincount(train.ravel(), minlength=vocab_size) + 0.5
    unigram = unigram / unigram.sum()
    pairs = np.zeros((vocab_size, vocab_size), np.float32)
    np.add.at(pairs, (train[:, :-1].ravel(), train[:, 1:].ravel()), 1.0)
    before, after = test[:, :-1].ravel(), test[:, 1:].ravel()
    seen = pairs.sum(1)[before]
    backoff = 5.0  # unigram pseudo-counts per bigram; the best of 1, 2, 5, 10 on this text
    bigram = (pairs[before, after] + backoff * unigram[after]) / (seen + backoff)
    return float(-np.log(unigram[after]).mean()), float(-np.log(bigram).mean())
