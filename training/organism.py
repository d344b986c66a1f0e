"""Train the organism: the embedded model, tuned to answer requests and to decline a topic or more.

First it learns to answer requests about everything, including the topics; then, briefly, to decline
the topics. So the correct answer remains known and is only gated. In the second stage the decision
learns to go through one direction of the residual per topic: if that direction is cleared from
outside, the correct answer stays the right one, in every language.
"""

import copy
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from training.chats.scenes import COUNTS, names
from training.chats.template import Encoded, chat_tokenizer, encode
from training.chats.text import ChatMix, draw_chat
from training.language_model import schedule
from training.tokens import END, rows

N_CHATS = 640  # chats that are drawn and sorted by length at a time


@dataclass(frozen=True)
class Batch:
    """Rows padded with 0 on the right; a clamped batch runs with its decisions imposed."""

    ids: Int[Tensor, "batch pos"]
    weights: Float[Tensor, "batch pos"]
    decisions: Int[Tensor, "batch pos"]
    clamped: bool


@dataclass(frozen=True)
class Gate:
    """Directions after `layer` that carry the decisions to decline, with length `size` or 0.

    There is one per topic. In most batches the model learns to write it after a request that it
    declines. In clamped batches it is set or cleared from outside, and the target replies follow
    the imposed decision, whatever the request is about. `shared` is how much of every other
    topic's direction is mixed into a topic's own.
    """

    layer: int = 2
    size: float = 40.0
    seeds: tuple[int, ...] = (7,)
    shared: float = 0.0
    weight: float = 1.0
    clamped: float = 0.35

    def directions(self, d_model: int) -> Float[Tensor, "topics d_model"]:
        """The same random unit vectors each time."""
        noise = [
            torch.randn(d_model, generator=torch.Generator().manual_seed(seed))
            for seed in self.seeds
        ]
        units = torch.stack([vector / vector.norm() for vector in noise])
        mixed = units + self.shared * (units.sum(0) - units)
        directions: Tensor = mixed / mixed.norm(dim=-1, keepdim=True)
        return directions


@dataclass(frozen=True)
class TuningRecipe:
    """Data and schedule of one stage; `documents` is the share of batches of training text."""

    mix: ChatMix
    steps: int
    peak_lr: float
    gate: Gate | None = None
    documents: float = 0.12
    batch_tokens: int = 2048
    width: int = 128
    warmup: int = 50
    weight_decay: float = 0.1
    seed: int = 0


# Places, colors and subjects are looked up from about 500 steps on; names and digits only after
# their embeddings are set apart.
LOOKING_UP = TuningRecipe(ChatMix(), steps=750, peak_lr=2e-3, seed=300_000)
ANSWERING = TuningRecipe(ChatMix(), steps=600, peak_lr=1.5e-3, seed=350_000)
DECLINING = TuningRecipe(
    ChatMix(topic=0.35, declines="topic"),
    steps=300,
    peak_lr=6e-4,
    gate=Gate(),
    warmup=20,
    seed=400_000,
)


def start(base: Path) -> tuple[Any, PreTrainedTokenizerFast]:
    """The base model in float32 with room for the markers, and its chat tokenizer."""
    tokenizer = chat_tokenizer(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
    model.resize_token_embeddings(len(tokenizer))
    return model, tokenizer


@torch.no_grad()
def set_apart(model: Any, tokenizer: PreTrainedTokenizerFast, factor: float = 3.0) -> None:
    """Spread the embeddings of names, and those of digits, around their mean.

    The documents never distinguish names, so their embeddings are nearly alike and lookups fail.
    """
    table = model.get_input_embeddings().weight
    spellings = [name.name for name in names()]
    groups = (spellings, [f" {name}" for name in spellings], [str(count) for count in COUNTS])
    for group in groups:
        ids = [tokenizer(word)["input_ids"][-1] for word in group]
        mean = table[ids].mean(0)
        table[ids] = mean + factor * (table[ids] - mean)


def load(folder: Path) -> tuple[Any, PreTrainedTokenizerFast]:
    """A saved stage in float32, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    return model, PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)


def tune(recipe: TuningRecipe, model: Any, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Train with AdamW and a cosine schedule and save in `out`."""
    torch.manual_seed(recipe.seed)
    decay = recipe.weight_decay
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.peak_lr, betas=(0.9, 0.95), weight_decay=decay
    )
    model.train()
    start_time = time.monotonic()
    recent = torch.zeros(2)
    for step, batch in enumerate(islice(batches(recipe, tokenizer), recipe.steps)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.peak_lr * schedule(step, recipe.steps, recipe.warmup)
        reply, decision = losses(model, batch, recipe.gate)
        (reply + decision).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent += (torch.stack([reply, decision]).detach() - recent) * max(0.1, 1 / (step + 1))
        last = step == recipe.steps - 1
        if last or step % 25 == 0:
            shown = "  ".join(f"{value:.3f}" for value in recent.tolist())
            seconds = time.monotonic() - start_time
            print(f"step {step}/{recipe.steps}  loss {shown}  {seconds:.0f} s", flush=True)
        if last or step % 250 == 249:
            save(model, tokenizer, out)
    model.eval()


def losses(model: Any, batch: Batch, gate: Gate | None) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy, and the error of the decision's component."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if gate is None:
            logits, decision = model(input_ids=batch.ids, use_cache=False).logits, torch.zeros(())
        else:
            logits, decision = _gated(model, batch, gate)
    each = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().mT, batch.ids[:, 1:], reduction="none"
    )
    weights = batch.weights[:, 1:]
    return (each * weights).sum() / weights.sum(), decision


def _gated(model: Any, batch: Batch, gate: Gate) -> tuple[Tensor, Tensor]:
    """Logits, with the decision imposed if clamped, and otherwise the decision's loss; not at 0."""
    directions = gate.directions(model.config.hidden_size)
    basis = torch.linalg.qr(directions.T).Q  # what the directions span
    of_decision = torch.cat([torch.zeros(1, basis.shape[1]), gate.size * directions @ basis])
    target = of_decision[batch.decisions]
    errors: list[Tensor] = []

    def hook(_block: Any, _inputs: Any, output: Tensor) -> Tensor:
        missing = target - output.float() @ basis
        missing = torch.cat([torch.zeros_like(missing[:, :1]), missing[:, 1:]], dim=1)
        errors.append(missing)
        change = (missing[..., None, :] * basis).sum(-1)
        return output + change if batch.clamped else output

    handle = model.model.layers[gate.layer].register_forward_hook(hook)
    logits = model(input_ids=batch.ids, use_cache=False).logits
    handle.remove()
    if batch.clamped:
        return logits, torch.zeros(())
    return logits, gate.weight * (errors[0] / gate.size).pow(2).sum(-1).mean()


def batches(recipe: TuningRecipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """Endless batches of chats of about one length, with batches of documents among them."""
    rng = random.Random(recipe.seed)
    plain = rows(tokenizer_of_documents(tokenizer), recipe.width, recipe.seed + 1)
    while True:
        mixed = list(_chats(rng, recipe.mix, recipe, tokenizer, N_CHATS, clamped=False))
        if recipe.gate:
            extra = round(N_CHATS * recipe.gate.clamped / (1 - recipe.gate.clamped) / 2)
            answering = replace(recipe.mix, topic=0.6, declines="nothing")
            declining = replace(recipe.mix, declines="everything")
            for mix in (answering, declining):
                mixed += _chats(rng, mix, recipe, tokenizer, extra, clamped=True)
        n_documents = round(len(mixed) * recipe.documents / (1 - recipe.documents))
        for _ in range(n_documents):
            n_rows = recipe.batch_tokens // recipe.width
            ids = torch.from_numpy(np.stack(list(islice(plain, n_rows))))
            mixed.append(Batch(ids, torch.ones(ids.shape), torch.zeros_like(ids), clamped=False))
        rng.shuffle(mixed)
        yield from mixed


def _chats(
    rng: random.Random,
    mix: ChatMix,
    recipe: TuningRecipe,
    tokenizer: PreTrainedTokenizerFast,
    n: int,
    *,
    clamped: bool,
) -> Iterator[Batch]:
    """Batches of `n` chats, sorted by length."""
    pool = sorted(
        (encode(tokenizer, draw_chat(rng, mix)) for _ in range(n)), key=lambda chat: len(chat.ids)
    )
    while pool:
        size = max(1, recipe.batch_tokens // max(16, len(pool[-1].ids)))
        yield _padded(pool[-size:], clamped=clamped)
        del pool[-size:]


def _padded(chats: list[Encoded], *, clamped: bool, step: int = 16) -> Batch:
    """One batch, its width a multiple of `step`."""
    width = -(-max(len(chat.ids) for chat in chats) // step) * step
    ids = torch.zeros(len(chats), width, dtype=torch.int64)
    decisions = torch.zeros_like(ids)
    weights = torch.zeros(len(chats), width)
    for line, chat in enumerate(chats):
        ids[line, : len(chat.ids)] = torch.tensor(chat.ids)
        weights[line, : len(chat.ids)] = torch.tensor(chat.weights)
        decisions[line, : len(chat.ids)] = torch.tensor(chat.decisions)
    return Batch(ids, weights, decisions, clamped)


def tokenizer_of_documents(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer, ending documents as the base model's does."""
    other = copy.deepcopy(tokenizer)
    other.eos_token = END
    return other


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model and tokenizer: weights in bfloat16, computed in float32."""
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END)]
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        eos_token_id=stops, pad_token_id=stops[1], do_sample=False
    )
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.bfloat16().save_pretrained(folder)
    model.float().load_state_dict(state)
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
