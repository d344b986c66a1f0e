"""One forward pass of a steered model: under which edits its keys and values were made, and which positions are whose.

What a later pass must know of an earlier one travels with the cache: the edits it was made under, and the norms above
which a position of each row is a sink. Copies of a cache carry copies of both.
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
_MARK = "saescope_edits"


class Kind(NamedTuple):
    """What decides which positions an edit is meant for."""

    scope: Scope
    skip_sinks: bool


class _Made(NamedTuple):
    """What a cache was made under: edits, and the sink limits (batch, 1) of its rows by layer."""

    mark: Hashable
    limits: dict[int, Float[Tensor, "batch 1"]]


@final
class Positions:
    """The positions of one pass, told apart by scopes and sinks."""

    def __init__(self, given: Pass, mark: Hashable) -> None:
        """Raises EditError for a cache that was made under other edits than `mark` (empty: none)."""
        self._given = given
        self._limits: dict[int, Float[Tensor, "batch 1"]] = {}
        self._first: Bool[Tensor, "batch pos"] | None = None
        if given.cache is None:
            return
        made: _Made = getattr(given.cache, _MARK, _Made((), {}))
        if not given.past:
            made = _Made(mark, {})
            setattr(given.cache, _MARK, made)
        elif made.mark != mark:
            raise EditError(
                "these keys and values were made under other edits: generate anew, without the cache"
            )
        self._limits = made.limits

    def meant(
        self, layer: int, kinds: Sequence[Kind], norms: Float[Tensor, "batch pos"]
    ) -> Bool[Tensor, "batch pos n"] | None:
        """Which positions each kind of edit is meant for, (…, 1) where all are of one kind; None where none is.

        Every pass over a row's beginning sets its sink limits, whatever the scope: later passes need them.
        """
        inner = self._inner(layer, norms) if any(kind.skip_sinks for kind in kinds) else None
        of = {kind: self._of(kind, inner, norms) for kind in kinds}
        if len(of) == 1:
            [only] = of.values()
            return None if only is None else only[..., None]
        if all(one is None for one in of.values()):
            return None
        nowhere = torch.zeros_like(norms, dtype=torch.bool)
        masks = [nowhere if (one := of[kind]) is None else one for kind in kinds]
        return torch.stack(masks, dim=-1)

    def _of(
        self, kind: Kind, inner: Bool[Tensor, "batch pos"] | None, norms: Float[Tensor, "batch pos"]
    ) -> Bool[Tensor, "batch pos"] | None:
        if (kind.scope == "prefill" and self._given.past) or (
            kind.scope == "decode" and not self._given.past
        ):
            return None
        real = self._real(norms)
        where = inner if kind.skip_sinks and inner is not None else real
        if kind.scope == "last" and norms.shape[1] > 1:
            where = where & (real.flip(1).cumsum(dim=1).flip(1) == 1)
        return where

    def _real(self, norms: Float[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        if self._given.mask is not None:
            return self._given.mask
        return torch.ones_like(norms, dtype=torch.bool)

    def _inner(self, layer: int, norms: Float[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Positions that are neither the first of their row nor a sink, judged by the row's own lower median norm."""
        if self._given.past:
            limit = self._limits[layer]
            if len(limit) not in (1, len(norms)):
                raise EditError(
                    f"this cache was made for {len(limit)} rows and has {len(norms)}: which norms are sinks there is "
                    "not known; generate anew, or give edits skip_sinks = false"
                )
            within = norms <= limit
            return within if self._given.mask is None else within & self._given.mask
        real = self._real(norms)
        if self._first is None:
            self._first = real & (real.cumsum(dim=1) == 1)
        others = real & ~self._first
        ordered = torch.where(others, norms, torch.inf).sort(dim=1).values
        middle = ((others.sum(dim=1) - 1).clamp(min=0) // 2)[:, None]
        limit = self._limits[layer] = SINK_RATIO * ordered.gather(
            1, middle
        )  # inf where a row has no other position
        return others & (norms <= limit)
