"""What an edit does to everything else: next-token distributions on neutral text, repetition."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.divergence import kl_divergence, top1_flips
from saescope.engine.batches import TokenBatch, divide_into_batches, lay_out
from saescope.engine.lm import LM

_BATCH_TOKENS = 256  # log-probabilities of the whole vocabulary are held for each of them
_LARGEST_LOG = 700.0  # exp of more overflows a float64
Floats = npt.NDArray[np.float64]
LogProbs = Float[Tensor, "batch pos vocab"]


@dataclass(frozen=True)
class Damage:
    """Next-token distributions on neutral text, with edits against without.

    KL is KL(without ‖ with) in nats per token.
    """

    tokens: int
    kl_mean: float
    kl_p95: float
    "95th percentile over tokens."
    kl_p99: float
    "99th percentile over tokens."
    top1_flips: float
    "Share of tokens after which another token is the most likely."
    ppl_ratio: float
    "Perplexity with edits over perplexity without."
    kl_sets: dict[str, float] = field(default_factory=dict)
    "Mean KL of each set of texts."


def damage(
    lm: LM,
    rows: Sequence[Sequence[int]],
    arms: Sequence[Callable[[], AbstractContextManager[object]]],
    sets: Sequence[str] = (),
) -> list[Damage]:
    """Damage per arm, on token rows that are read once without edits and once in each arm's block.

    `sets` names each row's set.
    """
    totals = [_Totals() for _ in arms]
    sets_of_tokens: list[str] = []
    for batch in divide_into_batches([len(row) for row in rows], _BATCH_TOKENS, packed=False):
        tokens = lay_out(batch, rows, lm.device)
        before = _log_probs(lm, tokens)
        for arm, total in zip(arms, totals, strict=True):
            with arm():
                after = _log_probs(lm, tokens)
            total.add(tokens, before, after)
        for [row] in batch if sets else ():
            sets_of_tokens += [sets[row]] * len(rows[row])
    return [total.damage(sets_of_tokens) for total in totals]


@dataclass
class _Totals:
    """Figures of one arm, per token, over all batches."""

    kl: list[Floats] = field(default_factory=list)
    flips: list[Floats] = field(default_factory=list)
    loss_before: list[Floats] = field(default_factory=list)
    loss_after: list[Floats] = field(default_factory=list)

    def add(self, tokens: TokenBatch, before: LogProbs, after: LogProbs) -> None:
        self.kl.append(_float64(kl_divergence(before, after)[tokens.mask]))
        self.flips.append(_float64(top1_flips(before, after)[tokens.mask]))
        self.loss_before.append(_losses(tokens, before))
        self.loss_after.append(_losses(tokens, after))

    def damage(self, sets_of_tokens: Sequence[str]) -> Damage:
        kl, flips = np.concatenate(self.kl), np.concatenate(self.flips)
        p95, p99 = np.quantile(kl, [0.95, 0.99])
        loss_before = np.concatenate(self.loss_before).mean()
        loss_after = np.concatenate(self.loss_after).mean()
        log_ratio = min(loss_after - loss_before, _LARGEST_LOG)
        return Damage(
            tokens=len(kl),
            kl_mean=float(kl.mean()),
            kl_p95=float(p95),
            kl_p99=float(p99),
            top1_flips=float(flips.mean()),
            ppl_ratio=float(np.exp(log_ratio)),
            kl_sets=_means_by_set(kl, sets_of_tokens),
        )


def _log_probs(lm: LM, tokens: TokenBatch) -> LogProbs:
    """Log-probabilities of the next token after every position."""
    mask = tokens.mask.long()
    with torch.inference_mode():
        logits = lm.whole(input_ids=tokens.ids, attention_mask=mask, use_cache=False).logits
        return torch.log_softmax(logits.float(), dim=-1)


def _losses(tokens: TokenBatch, log_probs: LogProbs) -> Floats:
    """Negative log-likelihood of every token but the first of its row."""
    following = tokens.ids[:, 1:, None]
    log_likelihood = log_probs[:, :-1].gather(2, following)[..., 0]
    return _float64(-log_likelihood[tokens.mask[:, 1:]])


def _means_by_set(values: Floats, sets: Sequence[str]) -> dict[str, float]:
    of_set = np.array(sets)
    return {name: float(values[of_set == name].mean()) for name in dict.fromkeys(sets)}


def _float64(values: Tensor) -> Floats:
    return np.asarray(values.double().cpu().numpy())


_AVERAGED = ("kl_mean", "kl_p95", "kl_p99", "top1_flips", "ppl_ratio")


def mean_damage(draws: Sequence[Damage]) -> Damage | None:
    """The mean of every figure over several draws; None if there are none."""
    if not draws:
        return None
    averages: dict[str, Any] = {}
    for name in _AVERAGED:
        averages[name] = float(np.mean([getattr(draw, name) for draw in draws]))
    kl_sets = {}
    for name in draws[0].kl_sets:
        kl_sets[name] = float(np.mean([draw.kl_sets[name] for draw in draws]))
    return replace(draws[0], kl_sets=kl_sets, **averages)


def repetition(ids: Sequence[int], n: int = 3) -> float:
    """The share of a reply's token n-grams that occurred before in it; 0 if it has none."""
    ngrams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    if not ngrams:
        return 0.0
    return 1 - len(set(ngrams)) / len(ngrams)
