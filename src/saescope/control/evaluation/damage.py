"""What an edit does to everything else: every token's distribution on neutral text, and signs of broken generation."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from saescope.engine.lm import LM
from saescope.engine.tokens import lay_out, plan_batches

_TOKENS = 256  # of which the whole vocabulary's scores are held at once
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Damage:
    """Over the tokens of neutral text, read with the edits and without.

    KL(without ‖ with) of the next token's distribution in nats: mean, 95th and 99th percentile; share of tokens whose
    likeliest successor changes; perplexity with over without. `kl_sets` has the mean of each set of texts by itself.
    """

    tokens: int
    kl_mean: float
    kl_p95: float
    kl_p99: float
    top1_flips: float
    ppl_ratio: float
    kl_sets: dict[str, float] = field(default_factory=dict)


def damage(
    lm: LM,
    rows: Sequence[Sequence[int]],
    conditions: Sequence[Callable[[], AbstractContextManager[object]]],
    sets: Sequence[str] = (),
) -> list[Damage]:
    """What each condition does to these token rows; they are read once without any and once under each.

    `sets` says which set each row is of.
    """
    kls: list[list[Floats]] = [[] for _ in conditions]
    flips: list[list[Floats]] = [[] for _ in conditions]
    losses: list[list[Floats]] = [[] for _ in conditions]
    plain: list[Floats] = []
    of: list[str] = []
    for batch in plan_batches([len(row) for row in rows], _TOKENS, packed=False):
        tokens = lay_out(batch, rows, lm.device)
        real = tokens.mask
        following = real[:, 1:]

        def scores(
            ids: Tensor = tokens.ids, real: Tensor = real
        ) -> Float[Tensor, "batch pos vocab"]:
            with torch.inference_mode():
                logits = lm.whole(input_ids=ids, attention_mask=real.long(), use_cache=False).logits
                return torch.log_softmax(logits.float(), dim=-1)

        def loss(of: Tensor, ids: Tensor = tokens.ids, following: Tensor = following) -> Floats:
            chosen = of[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
            return np.asarray(-chosen[following].double().cpu().numpy())

        of += [sets[row] for [row] in batch for _ in rows[row]] if sets else []
        base = scores()
        plain.append(loss(base))
        for n, condition in enumerate(conditions):
            with condition():
                changed = scores()
            kl = (base.exp() * (base - changed)).sum(-1)[real]
            kls[n].append(np.asarray(kl.double().clamp(min=0).cpu().numpy()))
            flips[n].append(
                np.asarray((base.argmax(-1) != changed.argmax(-1))[real].double().cpu().numpy())
            )
            losses[n].append(loss(changed))
    before = float(np.concatenate(plain).mean())
    return [
        _damage(
            np.concatenate(kls[n]),
            np.concatenate(flips[n]),
            float(np.concatenate(losses[n]).mean()) - before,
            of,
        )
        for n in range(len(conditions))
    ]


def _damage(kl: Floats, flips: Floats, loss: float, of: Sequence[str]) -> Damage:
    p95, p99 = np.quantile(kl, [0.95, 0.99])
    ratio = float(np.exp(min(loss, 700.0)))
    sets = {name: float(kl[np.array(of) == name].mean()) for name in dict.fromkeys(of)}
    return Damage(
        len(kl), float(kl.mean()), float(p95), float(p99), float(flips.mean()), ratio, sets
    )


def repetition(ids: Sequence[int], n: int = 3) -> float:
    """Share of a reply's n-grams of tokens that occurred before in it; 0 where it has none."""
    grams = Counter(tuple(ids[at : at + n]) for at in range(len(ids) - n + 1))
    total = sum(grams.values())
    return 1 - len(grams) / total if total else 0.0
