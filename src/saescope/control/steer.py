"""Steering: edits applied while a model runs, on and off at once, with a receipt of what they really did.

Hooks are put on a model by its first `steered` block and taken off by the last; what they do is decided by the edits
of the calling context alone, so nested blocks add up (all from the same residual) and threads do not meet.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saescope.control.edits import Edit
from saescope.control.formulae import LayerEdits, bind, coefficients
from saescope.engine.lm import LM
from saescope.engine.residual import Pass, intervene
from saescope.engine.sae import Sae
from saescope.engine.whole import decoder_of
from saescope.errors import EditError

SINK_RATIO = 10.0


@final
@dataclass
class Receipt:
    """What edits did: forward passes, positions edited, how often each feature fired there, and sizes of the change.

    `delta_norm_ratio` is the mean of |change| / |residual| over edited positions, `largest_ratio` the largest.
    """

    edits: tuple[Edit, ...]
    steps: int = 0
    positions: int = 0
    fired: list[int] = field(default_factory=list)
    ratio_sum: float = 0.0
    largest_ratio: float = 0.0
    changed: int = 0

    @property
    def delta_norm_ratio(self) -> float:
        """Mean of |change| / |residual| over the positions that an edit looked at."""
        return self.ratio_sum / self.positions if self.positions else 0.0

    @property
    def applied(self) -> bool:
        """Whether any residual was changed at all."""
        return self.changed > 0

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope steer`."""
        return {
            "applied": self.applied,
            "steps": self.steps,
            "positions": self.positions,
            "changed": self.changed,
            "fired": {edit.name: n for edit, n in zip(self.edits, self.fired, strict=True)},
            "delta_norm_ratio": self.delta_norm_ratio,
            "largest_ratio": self.largest_ratio,
        }


@dataclass(frozen=True, eq=False)
class _Active:
    """The edits of one `steered` block: by layer, with the numbers of the edits in the receipt."""

    lm: LM
    layers: Mapping[int, tuple[LayerEdits, list[int]]]
    receipt: Receipt


_ACTIVE: ContextVar[tuple[_Active, ...]] = ContextVar("active", default=())
_HOOKS: dict[int, tuple[int, ExitStack]] = {}
_LOCK = threading.Lock()


@contextmanager
def steered(
    lm: LM, edits: Sequence[Edit], saes: Sequence[Sae] = (), *, random_directions: int | None = None
) -> Iterator[Receipt]:
    """Within the block, every forward pass and generation of `lm` is edited; yields what the edits did.

    Edits of features need the SAEs of their layers, loaded with decoders; edits of directions need none.
    As a control, `random_directions` (a seed) has every edit write along a random direction of the same length. Raises
    EditError for an edit that does not belong to these SAEs or this model, before anything is changed.
    """
    receipt = Receipt(tuple(edits), fired=[0] * len(edits))
    bound = _bind(lm, edits, saes)
    if random_directions is not None:
        bound = {layer: (_turned(one, random_directions), numbers) for layer, (one, numbers) in bound.items()}
    active = _Active(lm, bound, receipt)
    _hook(lm)
    token = _ACTIVE.set((*_ACTIVE.get(), active))
    try:
        yield receipt
    finally:
        _ACTIVE.reset(token)
        _unhook(lm)


def _bind(lm: LM, edits: Sequence[Edit], saes: Sequence[Sae]) -> dict[int, tuple[LayerEdits, list[int]]]:
    sae_of = {sae.spec.layer: sae for sae in saes}
    layers: dict[int, list[int]] = {}
    for number, edit in enumerate(edits):
        _check_fit(lm, edit, sae_of.get(edit.layer))
        if not edit.changes_nothing:
            layers.setdefault(edit.layer, []).append(number)
    return {
        layer: (bind([edits[number] for number in numbers], sae_of.get(layer), device=lm.device), numbers)
        for layer, numbers in layers.items()
    }


def _check_fit(lm: LM, edit: Edit, sae: Sae | None) -> None:
    """Raises EditError for an edit that is not of this model, naming what differs."""
    if edit.layer >= len(lm.blocks):
        raise EditError(f"edit of {edit.name}: {lm.spec.repo} was loaded up to layer {len(lm.blocks) - 1}")
    if edit.direction is not None:
        if (width := len(edit.direction.values)) != lm.spec.d_model:
            raise EditError(f"edit of {edit.name}: it is {width} wide, residuals of {lm.spec.repo} {lm.spec.d_model}")
        return
    if sae is None:
        raise EditError(f"edit of {edit.name}: there is no SAE of layer {edit.layer} here")
    if sae.spec.d_model != lm.spec.d_model:
        raise EditError(
            f"edit of {edit.name}: its SAE reads residuals {sae.spec.d_model} wide, {lm.spec.repo} has "
            f"{lm.spec.d_model}"
        )


def _turned(bound: LayerEdits, seed: int) -> LayerEdits:
    drawn = torch.randn(bound.d.shape, generator=torch.Generator().manual_seed(seed)).to(bound.d)
    return replace(bound, d=drawn / drawn.norm(dim=1, keepdim=True) * bound.norms[:, None])


def _hook(lm: LM) -> None:
    """Put hooks on a model unless another block has; they do nothing where no edits are active."""
    # A streamed model cannot generate, but its forward passes are edited as any.
    decoders = [lm.decoder] if lm.streamed is not None else [lm.decoder, decoder_of(lm.whole)]
    with _LOCK:
        count, stack = _HOOKS.get(id(lm.blocks), (0, ExitStack()))
        if count == 0:
            state = _State(lm)
            stack.enter_context(intervene(decoders, dict(enumerate(lm.blocks)), state.begin, state.change))
        _HOOKS[id(lm.blocks)] = count + 1, stack


def _unhook(lm: LM) -> None:
    with _LOCK:
        count, stack = _HOOKS[id(lm.blocks)]
        if count == 1:
            del _HOOKS[id(lm.blocks)]
            stack.close()
        else:
            _HOOKS[id(lm.blocks)] = count - 1, stack


class _State:
    """One model's hooks: what the present pass is, in each thread, and the sink limits of its rows."""

    def __init__(self, lm: LM) -> None:
        self._blocks = lm.blocks
        self._local = threading.local()

    def begin(self, given: Pass) -> None:
        active = self._active()
        if not active:
            return
        mark = tuple(edit for one in active for edit in one.receipt.edits)
        if given.cache is not None:
            made_under = getattr(given.cache, "saescope_edits", mark if given.past == 0 else ())
            if given.past and made_under != mark:
                raise EditError("these keys and values were made under other edits: generate anew, without the cache")
            given.cache.saescope_edits = mark
        self._local.given = given
        if given.past == 0:
            self._local.limits = {}
        for one in active:
            one.receipt.steps += 1

    def change(self, layer: int, resid: Tensor) -> Tensor | None:
        bound = [(one, *one.layers[layer]) for one in self._active() if layer in one.layers]
        if not bound:
            return None
        given: Pass = self._local.given
        h = resid.float()
        norms = h.norm(dim=-1)
        real = given.mask if given.mask is not None else torch.ones_like(norms, dtype=torch.bool)
        inner = self._inner(layer, norms, real, given)
        total = torch.zeros_like(h)
        looked_at = torch.zeros_like(real)
        for one, edits, numbers in bound:
            where = torch.stack([_scope(edit, real, inner, given) for edit in edits.edits], dim=-1)
            rows = where.any(dim=-1)
            if not rows.any():
                continue
            looked_at |= rows
            amounts, acts = coefficients(edits, h[rows])
            here = where[rows]
            change = (amounts * here) @ edits.d
            total[rows] += change
            fires = (acts > 0) | (edits.ids < 0)  # a direction acts wherever it is meant to
            self._account(one.receipt, numbers, fires, here, change, norms[rows])
        if not looked_at.any():
            return None
        return torch.where(looked_at[..., None], (h + total).to(resid.dtype), resid)

    def _active(self) -> list[_Active]:
        return [one for one in _ACTIVE.get() if one.lm.blocks is self._blocks]

    def _inner(
        self, layer: int, norms: Float[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"], given: Pass
    ) -> Bool[Tensor, "batch pos"]:
        """Positions that are neither the first of their row nor a sink, judged by the row's own lower median norm."""
        first = torch.zeros_like(real)
        if given.past == 0:
            first = real & (real.cumsum(dim=1) == 1)
            others = real & ~first
            ordered = torch.where(others, norms, torch.inf).sort(dim=1).values
            middle = ((others.sum(dim=1) - 1).clamp(min=0) // 2)[:, None]
            self._local.limits[layer] = SINK_RATIO * ordered.gather(1, middle)  # inf where a row has no other position
        limit = self._local.limits.get(layer)
        sinks = norms > limit if limit is not None and len(limit) == len(norms) else torch.zeros_like(real)
        return real & ~first & ~sinks

    def _account(
        self,
        receipt: Receipt,
        numbers: Sequence[int],
        fires: Bool[Tensor, "n e"],
        here: Bool[Tensor, "n e"],
        change: Float[Tensor, "n d_model"],
        norms: Float[Tensor, "n"],
    ) -> None:
        sizes = change.norm(dim=-1)
        ratios = sizes / norms.clamp(min=1e-30)
        receipt.positions += len(ratios)
        receipt.changed += int((sizes > 0).sum())
        receipt.ratio_sum += float(ratios.sum())
        receipt.largest_ratio = max(receipt.largest_ratio, float(ratios.max()))
        for number, count in zip(numbers, (fires & here).sum(0).tolist(), strict=True):
            receipt.fired[number] += int(count)


def _scope(
    edit: Edit, real: Bool[Tensor, "batch pos"], inner: Bool[Tensor, "batch pos"], given: Pass
) -> Bool[Tensor, "batch pos"]:
    """The positions that one edit is meant for."""
    where = inner if edit.skip_sinks else real
    match edit.scope:
        case "prefill" if given.past:
            return torch.zeros_like(where)
        case "decode" if not given.past:
            return torch.zeros_like(where)
        case "last":
            from_end = real.flip(1).cumsum(dim=1).flip(1)
            return where & real & (from_end == 1)
        case _:
            return where
