"""Which positions of a forward pass an edit targets: by scope, padding and attention sinks.

What a later pass must know of an earlier one travels with the KV cache: the edits it was built
under, and the norm above which a position of each row is a sink. Copies of a cache carry both.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saescope.control.edits import Scope
from saescope.engine.residual import Pass
from saescope.errors import EditError

SINK_RATIO = 10.0
_CACHE_ATTRIBUTE = "saescope_edits"


class PositionRule(NamedTuple):
    """What decides which positions an edit targets."""

    scope: Scope
    skip_sinks: bool


class _CacheState(NamedTuple):
    """The edits that a cache was built under, and the sink limits of its rows by layer."""

    edits: Hashable
    sink_limits: dict[int, Float[Tensor, "batch 1"]]


@final
class TargetPositions:
    """The positions of one forward pass that edits target."""

    def __init__(self, forward: Pass, edits: Hashable) -> None:
        """Raises EditError for a cache built under other edits than these (empty: no edits)."""
        self._past = forward.past
        self._mask = forward.mask
        self._sink_limits: dict[int, Float[Tensor, "batch 1"]] = {}
        self._first: Bool[Tensor, "batch pos"] | None = None
        if forward.cache is None:
            return
        state: _CacheState = getattr(forward.cache, _CACHE_ATTRIBUTE, _CacheState((), {}))
        if not forward.past:
            state = _CacheState(edits, {})
            setattr(forward.cache, _CACHE_ATTRIBUTE, state)
        elif state.edits != edits:
            raise EditError(
                "this KV cache was built under different edits: build it again inside this block"
            )
        self._sink_limits = state.sink_limits

    def masks(
        self, layer: int, rules: Sequence[PositionRule], norms: Float[Tensor, "batch pos"]
    ) -> Bool[Tensor, "batch pos n"] | None:
        """The positions that each rule targets, (…, 1) if all rules agree; None if there are none.

        Every pass over a row's beginning sets its sink limits, whatever the scope: later passes
        need them.
        """
        inner = None
        if any(rule.skip_sinks for rule in rules):
            inner = self._inner(layer, norms)
        mask_of = {rule: self._mask_of(rule, inner, norms) for rule in rules}
        if all(mask is None for mask in mask_of.values()):
            return None
        nowhere = torch.zeros_like(norms, dtype=torch.bool)
        different = rules if len(mask_of) > 1 else rules[:1]
        masks = [mask_of[rule] for rule in different]
        return torch.stack([nowhere if mask is None else mask for mask in masks], dim=-1)

    def _mask_of(
        self,
        rule: PositionRule,
        inner: Bool[Tensor, "batch pos"] | None,
        norms: Float[Tensor, "batch pos"],
    ) -> Bool[Tensor, "batch pos"] | None:
        decoding = self._past > 0
        if rule.scope == "prefill" and decoding:
            return None
        if rule.scope == "decode" and not decoding:
            return None
        real = self._real(norms)
        mask = inner if rule.skip_sinks and inner is not None else real
        if rule.scope == "last" and norms.shape[1] > 1:
            real_from_here_on = real.flip(1).cumsum(dim=1).flip(1)
            mask = mask & (real_from_here_on == 1)
        return mask

    def _real(self, norms: Float[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Positions that are not padding."""
        if self._mask is not None:
            return self._mask
        return torch.ones_like(norms, dtype=torch.bool)

    def _inner(self, layer: int, norms: Float[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Positions that are neither the first of their row nor a sink."""
        real = self._real(norms)
        if self._past:
            return real & (norms <= self._known_limit(layer, len(norms)))
        if self._first is None:
            self._first = real & (real.cumsum(dim=1) == 1)
        others = real & ~self._first
        limit = SINK_RATIO * _lower_median(norms, others)
        self._sink_limits[layer] = limit
        return others & (norms <= limit)

    def _known_limit(self, layer: int, n_rows: int) -> Float[Tensor, "batch 1"]:
        """The sink limits of this cache's rows, as the pass over their beginning set them."""
        limit = self._sink_limits[layer]
        if len(limit) not in (1, n_rows):
            raise EditError(
                f"this KV cache was built for {len(limit)} rows and has {n_rows}, so the norms of "
                "its sinks are not known: build it again, or give edits skip_sinks = false"
            )
        return limit


def _lower_median(
    norms: Float[Tensor, "batch pos"], among: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch 1"]:
    """The lower median norm of each row among some positions; infinite if there are none."""
    ordered = torch.where(among, norms, torch.inf).sort(dim=1).values
    middle = (among.sum(dim=1) - 1).clamp(min=0) // 2
    return ordered.gather(1, middle[:, None])
