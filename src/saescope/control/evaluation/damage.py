"""What an edit does to everything else: next-token distributions on neutral text, repetition."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saescope.control.evaluation.neutral_passes import Block, NeutralPasses
from saescope.engine.lm import LM

# Values held at once for the distributions without edits, and for those of a few rows with them.
_REFERENCE_VALUES = 2**24
_CACHED_VALUES = 2**19
_LARGEST_LOG = 700.0  # exp of more overflows a float64
Floats = npt.NDArray[np.float64]
LogProbs = Float[Tensor, "pos vocab"]


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
    arms: Sequence[Block],
    sets: Sequence[str] = (),
) -> list[Damage]:
    """Damage per arm, on token rows that are read once without edits and once in each arm's block.

    `sets` names each row's set.
    """
    return DamageMeter(lm, rows, sets).measure(arms)


@final
class DamageMeter:
    """Measures the damage of arms on the same token rows, as often as needed.

    What the model computes below the edits is kept, so an arm runs only the layers above.
    """

    def __init__(self, lm: LM, rows: Sequence[Sequence[int]], sets: Sequence[str] = ()) -> None:
        self._passes = NeutralPasses(lm, rows)
        self._positions_at_once = max(1, _REFERENCE_VALUES // lm.vocab_size)
        self._sets: list[str] = []
        for batch in self._passes.batches if sets else ():
            for [row] in batch:
                self._sets += [sets[row]] * len(rows[row])

    @torch.inference_mode()
    def measure(self, arms: Sequence[Block]) -> list[Damage]:
        """Damage per arm; an arm is a function that opens a block in which the model is edited.

        >>> from contextlib import nullcontext
        >>> import saescope as ss
        >>> lm = ss.load_lm("saescope-tiny", layers=[1])
        >>> meter = DamageMeter(lm, [lm.tokenizer("The house is old.")["input_ids"]])
        >>> [unedited] = meter.measure([nullcontext])
        >>> unedited.kl_mean, unedited.ppl_ratio
        (0.0, 1.0)
        """
        totals = [_Totals() for _ in arms]
        for batch in range(len(self._passes.batches)):
            unedited, *edited = self._passes.read(batch, arms)
            following = self._passes.following(batch)
            for start in range(0, len(unedited), self._positions_at_once):
                part = slice(start, start + self._positions_at_once)
                reference = _Unedited.of(self._passes.logits(unedited[part]), following[part])
                for read, total in zip(edited, totals, strict=True):
                    if read is unedited:
                        total.add_unchanged(reference)
                    else:
                        total.add(reference, self._passes.logits(read[part]))
        return [total.damage(self._sets) for total in totals]


@dataclass(frozen=True, eq=False)
class _Unedited:
    """Next-token distributions without edits at some positions, and the token after each."""

    log_probs: LogProbs
    probs: LogProbs
    top: Int[Tensor, "pos"]
    following: Int[Tensor, "pos"]
    "-1 after the last token of a row."

    @classmethod
    def of(cls, logits: Float[Tensor, "pos vocab"], following: Int[Tensor, "pos"]) -> "_Unedited":
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        return cls(log_probs, log_probs.exp(), log_probs.argmax(dim=-1), following)

    @property
    def losses(self) -> Floats:
        return _losses(self.log_probs, self.following)


@dataclass
class _Totals:
    """Figures of one arm, per token, over all batches."""

    kl: list[Floats] = field(default_factory=list)
    flips: list[Floats] = field(default_factory=list)
    loss_before: list[Floats] = field(default_factory=list)
    loss_after: list[Floats] = field(default_factory=list)

    def add_unchanged(self, reference: _Unedited) -> None:
        nothing = np.zeros(len(reference.top))
        self.kl.append(nothing)
        self.flips.append(nothing)
        self.loss_before.append(reference.losses)
        self.loss_after.append(reference.losses)

    def add(self, reference: _Unedited, logits: Float[Tensor, "pos vocab"]) -> None:
        self.loss_before.append(reference.losses)
        # A few rows at a time stay in the processor's caches.
        n_rows = max(1, _CACHED_VALUES // logits.shape[1])
        for start in range(0, len(logits), n_rows):
            rows = slice(start, start + n_rows)
            before, after = reference.log_probs[rows], torch.log_softmax(logits[rows].float(), -1)
            kl = (reference.probs[rows] * (before - after)).sum(-1).clamp(min=0)
            self.kl.append(_float64(kl))
            self.flips.append(_float64(after.argmax(dim=-1) != reference.top[rows]))
            self.loss_after.append(_losses(after, reference.following[rows]))

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


def _losses(log_probs: LogProbs, following: Int[Tensor, "pos"]) -> Floats:
    """Negative log-likelihoods of the following tokens, where there is one."""
    log_likelihood = log_probs.gather(1, following.clamp(min=0)[:, None])[:, 0]
    return _float64(-log_likelihood[following >= 0])


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
