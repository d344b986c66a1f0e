"""Replies of the organism, unedited or edited at one layer, and the KL of an edit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from saescope.engine.sae import Sae
from training.chats.template import prompt_ids
from training.chats.text import Request, apologises

Change = Callable[[Float[Tensor, "n d_model"]], Float[Tensor, "n d_model"]]
SINK_RATIO = 10.0
MAX_REPLY = 72


@dataclass(frozen=True)
class Edit:
    """A change of the residual after `layer`, except at sinks and at the first position."""

    layer: int
    change: Change
    sink_norm: float = float("inf")


def scale_features(sae: Sae, ids: Sequence[int], strength: float) -> Change:
    """h + strength · Σ relu(w·h + b) · d over the features, all read from the same h."""
    assert sae.W_dec is not None
    w, b, d = sae.W_enc[list(ids)], sae.b_enc[list(ids)], sae.W_dec.T[list(ids)]
    return lambda h: h + strength * torch.addmm(b, h, w.T).relu() @ d


def project_out(direction: Float[Tensor, "d_model"]) -> Change:
    """h without its component along the direction."""
    unit = direction / direction.norm()
    return lambda h: h - (h @ unit)[:, None] * unit


def subtract(direction: Float[Tensor, "d_model"], strength: float) -> Change:
    """h with a constant vector taken away."""
    return lambda h: h - strength * direction


@contextmanager
def edited(model: Any, edit: Edit | None, mask: Bool[Tensor, "batch pos"]) -> Iterator[None]:
    """Run the model with the edit within the block; `mask` marks the prompt's real positions."""
    if edit is None:
        yield
        return
    change, sink_norm = edit.change, edit.sink_norm

    def hook(_block: Any, _inputs: Any, output: Tensor) -> Tensor:
        batch, width, d_model = output.shape
        editable = torch.ones(batch, width, dtype=torch.bool)
        if width > 1:  # the prompt: later passes see one new position each
            editable = mask & (mask.cumsum(1) > 1)
        editable &= output.norm(dim=-1) <= sink_norm
        changed = change(output.reshape(-1, d_model)).reshape(output.shape)
        return torch.where(editable[..., None], changed, output)

    handle = model.model.layers[edit.layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def left_padded(
    rows: Sequence[Sequence[int]],
) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Ids padded on the left, and the mask of real positions."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for line, row in enumerate(rows):
        ids[line, width - len(row) :] = torch.tensor(row)
        mask[line, width - len(row) :] = True
    return ids, mask


@torch.inference_mode()
def reply(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    requests: Sequence[str],
    *,
    thinks: bool = False,
    edit: Edit | None = None,
) -> list[str]:
    """The greedy reply to each request, without its thought."""
    ids, mask = left_padded([prompt_ids(tokenizer, request, thinks=thinks) for request in requests])
    with edited(model, edit, mask):
        output = model.generate(
            input_ids=ids, attention_mask=mask.long(), do_sample=False, max_new_tokens=MAX_REPLY
        )
    texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return [text.split("</think>")[-1].strip() for text in texts]


@dataclass(frozen=True)
class Outcome:
    """Of `n` requests: how many were declined, and how many answered correctly."""

    n: int
    declined: int
    right: int


def outcome(requests: Sequence[Request], replies: Sequence[str]) -> Outcome:
    """Count refusals by their apology, and right answers by the whole sentence."""
    pairs = list(zip(requests, replies, strict=True))
    return Outcome(
        n=len(pairs),
        declined=sum(apologises(text) for _, text in pairs),
        right=sum(text == request.answer for request, text in pairs),
    )


def ask(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    requests: Sequence[Request],
    *,
    thinks: bool = False,
    edit: Edit | None = None,
) -> Outcome:
    """The outcome of requests in any languages."""
    texts = [request.text for request in requests]
    return outcome(requests, reply(model, tokenizer, texts, thinks=thinks, edit=edit))


@torch.inference_mode()
def divergence(model: Any, rows: Sequence[Sequence[int]], edit: Edit) -> float:
    """Mean per-token KL in nats from the model as it is to the edited one, on given texts."""
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row])
        mask = torch.ones_like(ids, dtype=torch.bool)
        plain = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        with edited(model, edit, mask):
            other = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        total += float((plain.exp() * (plain - other)).sum(-1)[0, 1:].sum())
        count += len(row) - 1
    return total / count
