"""Which positions of a forward pass an edit targets: by scope, padding and attention sinks.

State needed by later passes (edits, sink thresholds per row) is stored on the KV cache and survives
copying. Steering finds sinks by the rule of one layer (`store/masking.py`): it compares a position
with the median of its row, because a forward pass knows neither other rows nor later layers.
Statistics compare it with the layer's median over the run, at all layers of the run.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saescope.control.edits import Scope
from saescope.engine.cache_rows import kept_rows, select_kept
from saescope.engine.magnitudes import sink_sizes
from saescope.engine.residual import Pass
from saescope.errors import EditError
from saescope.store.masking import FIRST_LAYER, SINK_RATIO

_CACHE_ATTRIBUTE = "saescope_edits"


class PositionRule(NamedTuple):
    """The settings of an edit that decide which positions it targets."""

    scope: Scope
    skip_sinks: bool


class _CacheState(NamedTuple):
    """The edits that a cache was built under, and the sink thresholds of its rows by layer."""

    edits: Hashable
    sink_thresholds: dict[int, Float[Tensor, "batch 1"]]


@final
class TargetPositions:
    """The positions of one forward pass that edits target."""

    def __init__(self, forward: Pass) -> None:
        self._past = forward.n_past
        self._mask = forward.mask
        self._cache = forward.cache
        self._sink_thresholds: dict[int, Float[Tensor, "batch 1"]] = {}
        self._first: Bool[Tensor, "batch pos"] | None = None

    def check_cache(self, edits: Hashable) -> None:
        """Raise EditError if the pass continues a KV cache built under other edits.

        A new cache is marked with these edits; an empty tuple stands for no edits.
        """
        if self._cache is None:
            return
        state: _CacheState = getattr(self._cache, _CACHE_ATTRIBUTE, _CacheState((), {}))
        if not self._past:
            state = _CacheState(edits, {})
            setattr(self._cache, _CACHE_ATTRIBUTE, state)
        elif state.edits != edits:
            raise EditError(
                "this KV cache was built under different edits: build it again inside this context"
            )
        self._sink_thresholds = state.sink_thresholds

    def rows(self, rows: range | None) -> slice:
        """Return where the rows of a prefill batch are in this pass; None stands for all rows."""
        if rows is None:
            return slice(None)
        kept = kept_rows(self._cache)
        if kept is None:
            return slice(rows.start, rows.stop)
        return slice(int((kept < rows.start).sum()), int((kept < rows.stop).sum()))

    def masks(
        self,
        layer: int,
        rules: Sequence[PositionRule],
        resid: Float[Tensor, "batch pos d"],
        norms: Float[Tensor, "batch pos"],
    ) -> Bool[Tensor, "batch pos n"] | None:
        """Return the positions that each rule targets; None if no rule's scope includes this pass.

        The last axis has one column per rule, or a single column if all rules are equal. Prefill
        always computes sink thresholds, because decoding uses them.
        """
        without_sinks = None
        if any(rule.skip_sinks for rule in rules):
            without_sinks = self._without_first_and_sinks(layer, resid, norms)
        mask_of = {rule: self._mask_of(rule, without_sinks, norms) for rule in rules}
        if all(mask is None for mask in mask_of.values()):
            return None
        nowhere = torch.zeros_like(norms, dtype=torch.bool)
        columns = rules if len(mask_of) > 1 else rules[:1]
        masks = [mask_of[rule] for rule in columns]
        return torch.stack([nowhere if mask is None else mask for mask in masks], dim=-1)

    def _mask_of(
        self,
        rule: PositionRule,
        without_sinks: Bool[Tensor, "batch pos"] | None,
        norms: Float[Tensor, "batch pos"],
    ) -> Bool[Tensor, "batch pos"] | None:
        decoding = self._past > 0
        if rule.scope == "prefill" and decoding:
            return None
        if rule.scope == "decode" and not decoding:
            return None
        real = self._real(norms)
        mask = real
        if rule.skip_sinks and without_sinks is not None:
            mask = without_sinks
        if rule.scope == "last" and norms.shape[1] > 1:
            n_real_remaining = real.flip(1).cumsum(dim=1).flip(1)
            mask = mask & (n_real_remaining == 1)
        return mask

    def _real(self, norms: Float[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Positions that are not padding."""
        if self._mask is not None:
            return self._mask
        return torch.ones_like(norms, dtype=torch.bool)

    def _without_first_and_sinks(
        self, layer: int, resid: Float[Tensor, "batch pos d"], norms: Float[Tensor, "batch pos"]
    ) -> Bool[Tensor, "batch pos"]:
        """Real positions that are neither the first of their row nor a sink."""
        real = self._real(norms)
        if self._past:
            threshold = self._stored_threshold(layer, len(norms))
            return real & (sink_sizes(resid, norms) <= threshold)
        if self._first is None:
            self._first = real & (real.cumsum(dim=1) == 1)
        others = real & ~self._first
        threshold = SINK_RATIO * _lower_median(norms, others)
        if layer == FIRST_LAYER:
            threshold = torch.full_like(threshold, torch.inf)
        self._sink_thresholds[layer] = threshold
        return others & (sink_sizes(resid, norms) <= threshold)

    def _stored_threshold(self, layer: int, n_rows: int) -> Float[Tensor, "batch 1"]:
        """The sink thresholds that prefill stored for the rows of this cache."""
        threshold = select_kept(self._sink_thresholds[layer], self._cache)
        if len(threshold) not in (1, n_rows):
            raise EditError(
                f"KV cache was built with batch size {len(threshold)}, now {n_rows}: rebuild it or "
                "set skip_sinks=False"
            )
        return threshold


def _lower_median(
    norms: Float[Tensor, "batch pos"], among: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch 1"]:
    """The lower median norm of each row among some positions; infinite if there are none."""
    ordered = torch.where(among, norms, torch.inf).sort(dim=1).values
    middle = (among.sum(dim=1) - 1).clamp(min=0) // 2
    return ordered.gather(1, middle[:, None])
