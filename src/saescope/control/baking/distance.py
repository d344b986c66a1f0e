"""Measure the distance between two models: KL of next-token distributions on neutral text.

Models are streamed in float32, one block at a time. Only one model is in memory; the first is
represented by its final residuals.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from saescope.control.baking.bake_plan import ReferenceIntervention
from saescope.control.baking.residual_map import NormProjection, ResidualMap
from saescope.control.divergence import kl_divergence, top1_flips
from saescope.engine.anatomy import Anatomy
from saescope.engine.lm import LM
from saescope.engine.logits import Logits, final_layer_residuals
from saescope.engine.residual import map_output, replace_outputs

_TOKENS_PER_CHUNK = 32  # float64 logits over the whole vocabulary are held for one chunk
TokenIds = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Distance:
    """KL(first ‖ second) of next-token distributions, in nats per token."""

    tokens: int
    mean: float
    p95: float
    p99: float
    largest: float

    flips: float
    "Fraction of positions at which the top-1 next token changes."

    def to_dict(self) -> dict[str, float | int]:
        """Return a JSON-compatible dict."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class RecordedOutputs:
    """A model's final residuals on neutral text, and the function that maps them to logits."""

    resid: Float[Tensor, "n d_model"]
    logits: Logits
    final_norm_map: ResidualMap | NormProjection | None = None

    def log_probs(self, tokens: slice) -> Float[Tensor, "m vocab"]:
        """Return log probabilities of the next token in float64, for a slice of the tokens."""
        at_final_norm: AbstractContextManager[None] = nullcontext()
        if isinstance(self.final_norm_map, NormProjection):
            at_final_norm = map_output(self.logits.norm, self.final_norm_map)
        elif self.final_norm_map is not None:
            at_final_norm = replace_outputs([(self.logits.norm, self.final_norm_map)])
        with at_final_norm:
            logits = self.logits(self.resid[tokens])
        return torch.log_softmax(logits.double().cpu(), dim=-1)


def distance(first: RecordedOutputs, second: RecordedOutputs) -> Distance:
    """Return KL(first ‖ second) over all tokens."""
    if len(first.resid) != len(second.resid):
        raise ValueError(f"token counts differ: {len(first.resid)} and {len(second.resid)}")
    divergences, flips = [], []
    for start in range(0, len(first.resid), _TOKENS_PER_CHUNK):
        tokens = slice(start, start + _TOKENS_PER_CHUNK)
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
    token_ids: TokenIds,
    anatomy: Anatomy,
    intervention: ReferenceIntervention | AbstractContextManager[Any] | None = None,
) -> RecordedOutputs:
    """Run the model under an intervention or a context manager such as `steered`."""
    if not isinstance(intervention, ReferenceIntervention):
        with intervention or nullcontext():
            return RecordedOutputs(final_layer_residuals(lm, token_ids), logits)
    with _applied_in_blocks(lm, anatomy, intervention):
        resid = final_layer_residuals(lm, token_ids)
    # Logits are computed from residuals later, so the intervention at the final norm is applied
    # again then.
    norm = str(anatomy.head.norm)
    final_norm_map = intervention.module_outputs.get(norm) or intervention.norm_outputs.get(norm)
    return RecordedOutputs(resid, logits, final_norm_map)


@contextmanager
def _applied_in_blocks(
    lm: LM, anatomy: Anatomy, intervention: ReferenceIntervention
) -> Iterator[None]:
    """Apply an intervention, except at the final norm, which a streamed model does not run."""
    outputs: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
    for layer, residual_map in intervention.block_outputs.items():
        outputs.append((lm.blocks[layer], residual_map))
    for name, residual_map in intervention.module_outputs.items():
        if name != anatomy.head.norm:
            outputs.append((lm.model.get_submodule(name), residual_map))
    inputs = [
        (lm.model.get_submodule(name), residual_map)
        for name, residual_map in intervention.module_inputs.items()
    ]
    if intervention.first_input is not None:
        inputs.append((lm.blocks[0], intervention.first_input))
    with ExitStack() as stack:
        stack.enter_context(replace_outputs(outputs, inputs))
        for name, projection in intervention.norm_outputs.items():
            if name != anatomy.head.norm:
                stack.enter_context(map_output(lm.model.get_submodule(name), projection))
        yield
