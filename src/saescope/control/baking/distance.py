"""How far two ways of running a model are apart: KL of every next token's distribution on neutral text.

Models are streamed in float32, a block at a time, and never two at once: of the first only the last residuals are kept.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from saescope.control.baking.methods import ResidualHook
from saescope.control.baking.residual_map import ResidualMap
from saescope.control.divergence import kl_divergence, top1_flips
from saescope.engine.anatomy import Anatomy
from saescope.engine.lm import LM
from saescope.engine.logits import Logits, last_residuals
from saescope.engine.residual import replaced

_TOKENS = 32  # of which the whole vocabulary's scores are held at once, in float64
Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Distance:
    """KL(first ‖ second) of every next token's distribution in nats: mean, 95th and 99th percentile, largest.

    `flips` is the share of tokens whose likeliest successor differs.
    """

    tokens: int
    mean: float
    p95: float
    p99: float
    largest: float
    flips: float

    def to_dict(self) -> dict[str, float | int]:
        """As plain values."""
        return dict(vars(self))


@dataclass(frozen=True)
class RecordedOutputs:
    """Neutral text as a model read it in one way: the last residuals, and how they become logits."""

    resid: Float[Tensor, "n d_model"]
    logits: Callable[[Tensor], Tensor]
    head: Callable[[], AbstractContextManager[None]] = nullcontext


def record_outputs(
    lm: LM,
    logits: Logits,
    rows: Rows,
    anatomy: Anatomy,
    hook: ResidualHook | AbstractContextManager[Any] | None = None,
) -> RecordedOutputs:
    """Read rows under a hook; one at the final norm is put there again when logits are asked for."""
    if not isinstance(hook, ResidualHook):
        with hook or nullcontext():
            return RecordedOutputs(last_residuals(lm, rows), logits)
    final = hook.outputs.get(str(anatomy.head.norm))
    with hooked(lm, anatomy, hook):
        resid = last_residuals(lm, rows)
    return RecordedOutputs(
        resid, logits, (lambda: replaced([(logits.norm, final)])) if final else nullcontext
    )


def hooked(lm: LM, anatomy: Anatomy, hook: ResidualHook) -> AbstractContextManager[None]:
    """A method's hook on an LM's blocks; what it does at the final norm is not among them."""

    def module(site: str) -> nn.Module:
        return (
            lm.blocks[int(site.split()[1])]
            if site.startswith("block ")
            else lm.decoder.get_submodule(site)
        )

    at_blocks: list[tuple[nn.Module, ResidualMap]] = [
        (module(site), m) for site, m in hook.outputs.items() if site != anatomy.head.norm
    ]
    return replaced(at_blocks, [(lm.blocks[0], hook.first)] if hook.first else [])


def distance(first: RecordedOutputs, second: RecordedOutputs) -> Distance:
    """KL(first ‖ second) over all tokens."""
    kls, flips = [], []
    pairs = zip(first.resid.split(_TOKENS), second.resid.split(_TOKENS), strict=True)
    for a, b in pairs:
        p, q = _log_softmax(first, a), _log_softmax(second, b)
        kls.append(kl_divergence(p, q))
        flips.append(top1_flips(p, q))
    kl = torch.cat(kls).numpy()
    p95, p99 = np.quantile(kl, [0.95, 0.99])
    share = float(torch.cat(flips).double().mean())
    return Distance(len(kl), float(kl.mean()), float(p95), float(p99), float(kl.max()), share)


def _log_softmax(of: RecordedOutputs, resid: Tensor) -> Float[Tensor, "n vocab"]:
    with of.head():
        return torch.log_softmax(of.logits(resid).double().cpu(), dim=-1)
