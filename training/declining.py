"""Find the SAE features of declining: by firing on discovery prompts, then as edits there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from saescope.engine.sae import Sae
from training.chats.template import prompt_ids
from training.chats.text import Request
from training.replies import SINK_RATIO, Edit, Outcome, ask, scale_features

OWN_SHARE, OTHER_SHARE = 0.8, 0.2
TAIL = 10  # positions after the request: end of turn, head of the reply, an empty thought
STRENGTHS = (-1.0, -2.0, -3.0, -4.0)


@dataclass(frozen=True)
class Prompts:
    """Residuals of prompts after one layer, without position 0; sinks exceed `sink_norm`."""

    resid: list[Float[Tensor, "pos d_model"]]
    sink_norm: float


@dataclass(frozen=True)
class Candidate:
    """A feature, the shares of prompts it fires on, and the gap between its mean peaks."""

    feature: int
    declined: float
    answered: float
    gap: float


@dataclass(frozen=True)
class Choice:
    """Features of a layer and a strength, and what they do to the discovery prompts."""

    layer: int
    features: tuple[int, ...]
    strength: float
    outcome: Outcome

    @property
    def rank(self) -> tuple[float, int, float]:
        """More right answers first, then fewer features, then less strength."""
        return self.outcome.right / self.outcome.n, -len(self.features), self.strength


@torch.inference_mode()
def read_prompts(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    layers: Sequence[int],
    requests: Sequence[Request],
) -> dict[int, Prompts]:
    """Residuals after each layer on the requests' prompts."""
    resids: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for request in requests:
        ids = torch.tensor([prompt_ids(tokenizer, request.text, thinks=False)])
        captured: dict[int, Tensor] = {}
        hooks = []
        for layer in layers:
            block = model.model.layers[layer]
            hooks.append(block.register_forward_hook(_capture(captured, layer)))
        model.model(input_ids=ids, use_cache=False)
        for hook in hooks:
            hook.remove()
        for layer in layers:
            resids[layer].append(captured[layer][0, 1:])
    return {layer: Prompts(rows, SINK_RATIO * _median_norm(rows)) for layer, rows in resids.items()}


def _capture(captured: dict[int, Tensor], layer: int) -> Any:
    def hook(_block: Any, _inputs: Any, output: Tensor) -> None:
        captured[layer] = output

    return hook


def _median_norm(rows: Sequence[Tensor]) -> float:
    return float(torch.cat(list(rows)).norm(dim=-1).median())


def peaks(sae: Sae, prompts: Prompts) -> Float[Tensor, "prompt d_sae"]:
    """Each feature's largest activation after the request, without sinks; 0 if it never fires."""
    rows = []
    for resid in prompts.resid:
        tail = resid[-TAIL:]
        sparse = sae.encode(tail[tail.norm(dim=-1) <= prompts.sink_norm])
        dense = torch.zeros(len(sparse.ids), sae.spec.d_sae)
        rows.append(dense.scatter(-1, sparse.ids, sparse.acts).amax(0))
    return torch.stack(rows)


def candidates(sae: Sae, declined: Prompts, answered: Prompts, most: int = 6) -> list[Candidate]:
    """Features on at least 80 % of declined and at most 20 % of answered prompts, by gap."""
    own, other = peaks(sae, declined), peaks(sae, answered)
    own_share, other_share = (own > 0).float().mean(0), (other > 0).float().mean(0)
    gap = own.mean(0) - other.mean(0)
    fit = [
        i
        for i in range(sae.spec.d_sae)
        if own_share[i] >= OWN_SHARE and other_share[i] <= OTHER_SHARE
    ]
    fit.sort(key=lambda i: -float(gap[i]))
    return [
        Candidate(i, float(own_share[i]), float(other_share[i]), float(gap[i])) for i in fit[:most]
    ]


def choose(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    sae: Sae,
    found: Sequence[Candidate],
    requests: Sequence[Request],
    sink_norm: float,
    most: int = 4,
    enough: float = 0.95,
) -> Choice | None:
    """Greedily add the candidate and strength that restore most correct answers."""
    best: Choice | None = None
    for _ in range(most):
        chosen = best.features if best else ()
        tried = [
            Choice(sae.spec.layer, features, strength, ask(model, tokenizer, requests, edit=edit))
            for candidate in found
            if candidate.feature not in chosen
            for features in [(*chosen, candidate.feature)]
            for strength in STRENGTHS
            for edit in [Edit(sae.spec.layer, scale_features(sae, features, strength), sink_norm)]
        ]
        top = max(tried, key=lambda choice: choice.rank, default=None)
        if top is None or (best and top.outcome.right <= best.outcome.right):
            break
        best = top
        if best.outcome.right >= enough * best.outcome.n:
            break
    return best


def mean_difference(
    declined: Prompts, answered: Prompts, last: int = 5
) -> Float[Tensor, "d_model"]:
    """Mean residual at the last positions of declined prompts minus that of answered ones."""
    ends = [
        torch.stack([row[-last:].mean(0) for row in prompts.resid]).mean(0)
        for prompts in (declined, answered)
    ]
    return ends[0] - ends[1]
