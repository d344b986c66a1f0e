"""How far apart two ways of running a model are: KL of next-token distributions on neutral text.

Models are streamed in float32, one block at a time, and never two at once: of the first, only the
last residuals are kept.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
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
from saescope.engine.residual import replace_outputs

_TOKENS = 32  # whose logits over the whole vocabulary are held at once, in float64
TokenRows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Distance:
    """KL(first ‖ second) of next-token distributions, in nats per token."""

    tokens: int
    mean: float
    p95: float
    p99: float
    largest: float

    flips: float
    "Share of tokens whose likeliest next token differs."

    def to_dict(self) -> dict[str, float | int]:
        """Return a JSON-compatible dict."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class RecordedOutputs:
    """What a model made of neutral text: its last residuals, and how they become logits."""

    resid: Float[Tensor, "n d_model"]
    logits: Logits
    final_norm_map: ResidualMap | None = None

    def log_probs(self, tokens: slice) -> Float[Tensor, "m vocab"]:
        """Log probabilities of the next token in float64, for some tokens."""
        hooked: AbstractContextManager[None] = nullcontext()
        if self.final_norm_map is not None:
            hooked = replace_outputs([(self.logits.norm, self.final_norm_map)])
        with hooked:
            logits = self.logits(self.resid[tokens])
        return torch.log_softmax(logits.double().cpu(), dim=-1)


def distance(first: RecordedOutputs, second: RecordedOutputs) -> Distance:
    """KL(first ‖ second) over all tokens."""
    if len(first.resid) != len(second.resid):
        raise ValueError(f"outputs of {len(first.resid)} and {len(second.resid)} tokens")
    divergences, flips = [], []
    for start in range(0, len(first.resid), _TOKENS):
        tokens = slice(start, start + _TOKENS)
        p, q = first.log_probs(tokens), second.log_probs(tokens)
        divergences.append(kl_divergence(p, q))
        flips.append(top1_flips(p, q))
    kl = torch.cat(divergences).numpy()
    p95, p99 = np.quantile(kl, [0.95, 0.99])
    return Distance(
        tokens=len(kl),
        mean=float(kl.mean()),
        p95=float(p95),
        p99=float(p99),
        largest=float(kl.max()),
        flips=float(torch.cat(flips).double().mean()),
    )


def record_outputs(
    lm: LM,
    logits: Logits,
    rows: TokenRows,
    anatomy: Anatomy,
    state: ResidualHook | AbstractContextManager[Any] | None = None,
) -> RecordedOutputs:
    """Read token rows under a hook or a context manager such as `steered`."""
    if not isinstance(state, ResidualHook):
        with state or nullcontext():
            return RecordedOutputs(last_residuals(lm, rows), logits)
    with _hooked_blocks(lm, anatomy, state):
        resid = last_residuals(lm, rows)
    # The final norm runs when logits are computed: what the hook does there is put there again.
    return RecordedOutputs(resid, logits, state.outputs.get(str(anatomy.head.norm)))


@contextmanager
def _hooked_blocks(lm: LM, anatomy: Anatomy, hook: ResidualHook) -> Iterator[None]:
    """Apply a method's hook within the block, except at the final norm."""
    outputs: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
    for site, residual_map in hook.outputs.items():
        if site != anatomy.head.norm:
            outputs.append((_module_at(lm, site), residual_map))
    inputs = [(lm.blocks[0], hook.first)] if hook.first is not None else []
    with replace_outputs(outputs, inputs):
        yield


def _module_at(lm: LM, site: str) -> nn.Module:
    kind, _, layer = site.partition(" ")
    if kind == "block":
        return lm.blocks[int(layer)]
    return lm.decoder.get_submodule(site)
