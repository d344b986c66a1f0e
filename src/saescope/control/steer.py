"""Steering: edits applied while a model runs, on and off at once, with a receipt of what they really did.

Only layers that are edited are hooked, while a `steered` block is open; what a hook does is decided by the edits of the
calling context alone, so nested blocks add up (all from the same residual) and threads do not meet. A step waits for
nothing but what it computes: receipts are reckoned up when they are read.
"""

import threading
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from saescope.control.edits import Edit
from saescope.control.formulae import LayerEdits, Reader, bind_edits, coefficients, watch
from saescope.control.passes import Kind, Positions
from saescope.control.receipts import Note, Receipt
from saescope.engine.lm import LM
from saescope.engine.residual import Pass, edited, intervene
from saescope.engine.sae import Sae
from saescope.engine.whole import decoder_of
from saescope.errors import EditError
from saescope.sources.catalog import Feature

Asked = tuple[Feature, bool]  # a condition's feature, and whether only the top k counts


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer's edits, their numbers in the receipt, and where each one's condition is read: layer, column, above."""

    bound: LayerEdits
    numbers: tuple[int, ...]
    kinds: tuple[Kind, ...]
    asks: tuple[tuple[int, int, float] | None, ...] | None


@dataclass(frozen=True, eq=False)
class _Active:
    """The edits of one `steered` block by layer, what their conditions read by layer, and what makes them these."""

    lm: LM
    layers: Mapping[int, _Layer]
    watched: Mapping[int, Reader]
    receipt: Receipt
    mark: Hashable


_ACTIVE: ContextVar[tuple[_Active, ...]] = ContextVar("active", default=())
_HOOKS: dict[int, "_Hooks"] = {}
_LOCK = threading.Lock()


@contextmanager
def steered(
    lm: LM, saes: Sequence[Sae], edits: Sequence[Edit], *, random_directions: int | None = None
) -> Iterator[Receipt]:
    """Within the block, every forward pass and generation of `lm` is edited; yields what the edits did.

    Edits of features need the SAEs of their layers, loaded with decoders; edits of directions need none. As a control,
    `random_directions` (a seed) has every edit write along a random direction of the same length. Raises EditError for
    an edit that does not belong to these SAEs or this model, before anything is changed.
    """
    active = _activate(lm, tuple(edits), {sae.spec.layer: sae for sae in saes}, random_directions)
    hooked = active.layers.keys() | active.watched.keys()
    _hook(lm, hooked)
    token = _ACTIVE.set((*_ACTIVE.get(), active))
    try:
        with edited(lm):
            yield active.receipt
    finally:
        _ACTIVE.reset(token)
        _unhook(lm, hooked)


def _activate(
    lm: LM, edits: tuple[Edit, ...], sae_of: Mapping[int, Sae], turn: int | None
) -> _Active:
    gains, norms = [0.0] * len(edits), [0.0] * len(edits)
    for number, edit in enumerate(edits):
        _check_fit(lm, edit, sae_of)
        alone = bind_edits([edit], sae_of.get(edit.layer))
        gains[number], norms[number] = float(alone.gain), float(alone.norms)
    acting = [number for number, edit in enumerate(edits) if not edit.is_noop]
    asked: dict[int, list[Asked]] = {}
    layers = {}
    for layer in sorted({edits[number].layer for number in acting}):
        numbers = tuple(number for number in acting if edits[number].layer == layer)
        chosen = [edits[number] for number in numbers]
        bound = bind_edits(chosen, sae_of.get(layer), device=lm.device)
        kinds = tuple(Kind(edit.scope, edit.skip_sinks) for edit in chosen)
        asks = tuple(_ask(edit, asked) for edit in chosen)
        bound = bound if turn is None else bound.turned(turn)
        layers[layer] = _Layer(bound, numbers, kinds, asks if any(asks) else None)
    watched = {layer: watch(wanted, sae_of[layer]) for layer, wanted in asked.items()}
    used = {layer for number in acting for layer in edits[number].sae_layers}
    mark = (
        tuple(edits[number] for number in acting),
        turn,
        tuple(sae_of[layer].spec for layer in sorted(used)),
    )
    return _Active(lm, layers, watched, Receipt(edits, gains, norms), mark if acting else ())


def _ask(edit: Edit, asked: dict[int, list[Asked]]) -> tuple[int, int, float] | None:
    """Where an edit's condition will be read, added to what is read at its layer."""
    if (condition := edit.condition) is None:
        return None
    wanted = asked.setdefault(condition.feature.layer, [])
    one = (condition.feature, edit.gate == "topk")
    if one not in wanted:
        wanted.append(one)
    return condition.feature.layer, wanted.index(one), condition.above


def _check_fit(lm: LM, edit: Edit, sae_of: Mapping[int, Sae]) -> None:
    """Raises EditError for an edit that is not of this model, naming what differs."""
    if edit.layer >= len(lm.blocks):
        raise EditError(
            f"edit of {edit.name}: {lm.spec.repo} was loaded up to layer {len(lm.blocks) - 1}"
        )
    if edit.direction is not None and (width := len(edit.direction.values)) != lm.spec.d_model:
        raise EditError(
            f"edit of {edit.name}: it is {width} wide, residuals of {lm.spec.repo} {lm.spec.d_model}"
        )
    if (
        lm.streamed is not None
        and edit.condition is not None
        and edit.condition.feature.layer != edit.layer
    ):
        raise EditError(
            f"edit of {edit.name}: {lm.spec.repo} is streamed, a layer in a pass: a condition of another layer is not "
            "known there"
        )
    for layer in sorted(edit.sae_layers):
        if layer not in sae_of:
            raise EditError(f"edit of {edit.name}: there is no SAE of layer {layer} here")
        if (width := sae_of[layer].spec.d_model) != lm.spec.d_model:
            raise EditError(
                f"edit of {edit.name}: its SAE reads residuals {width} wide, {lm.spec.repo} has {lm.spec.d_model}"
            )


def _hook(lm: LM, layers: Iterable[int]) -> None:
    """Hook a model's passes and these layers, as far as no other block has."""
    # A streamed model cannot generate, but its forward passes are edited as any.
    decoders = [lm.decoder] if lm.streamed is not None else [lm.decoder, decoder_of(lm.whole)]
    with _LOCK:
        _HOOKS.setdefault(id(lm.blocks), _Hooks(lm.blocks, decoders)).open(layers)


def _unhook(lm: LM, layers: Iterable[int]) -> None:
    with _LOCK:
        if _HOOKS[id(lm.blocks)].close(layers):
            del _HOOKS[id(lm.blocks)]


@final
class _Hooks:
    """One model's hooks, as many as open blocks need; they do nothing where no edits are active."""

    def __init__(self, blocks: nn.ModuleList, decoders: Sequence[nn.Module]) -> None:
        self._blocks = blocks
        self._decoders = decoders
        self._open: dict[int | None, ExitStack] = {}
        self._users: Counter[int | None] = Counter()
        self._local = threading.local()

    def open(self, layers: Iterable[int]) -> None:
        """One more block needs passes and these layers."""
        for layer in (None, *layers):
            self._users[layer] += 1
            if layer not in self._open:
                hooked = (
                    (self._decoders, {}) if layer is None else ([], {layer: self._blocks[layer]})
                )
                self._open[layer] = ExitStack()
                self._open[layer].enter_context(intervene(*hooked, self._begin, self._change))

    def close(self, layers: Iterable[int]) -> bool:
        """One block less needs them; whether it was the last."""
        for layer in (None, *layers):
            self._users[layer] -= 1
            if not self._users[layer]:
                self._open.pop(layer).close()
        return not self._open

    def _begin(self, given: Pass) -> None:
        active = [one for one in _ACTIVE.get() if one.lm.blocks is self._blocks]
        self._local.now = None
        positions = Positions(given, tuple(one.mark for one in active if one.mark))
        self._local.now = _Now(active, positions) if active else None
        for one in active:
            one.receipt.steps += 1

    def _change(
        self, layer: int, resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"] | None:
        now: _Now | None = getattr(self._local, "now", None)
        return None if now is None else now.change(layer, resid)


class _Part(NamedTuple):
    """What one block's edits do at one layer: where, and the note for its receipt, which lacks what moved.

    `rows` picks the positions looked at, None where a pass has one position a row; `touched` are those an edit acts on.
    """

    receipt: Receipt
    note: Note
    rows: Bool[Tensor, "batch pos"] | None
    touched: Bool[Tensor, "batch pos"]


@final
class _Now:
    """The pass a thread is in: the edits that are active, the positions there are, and what conditions have read."""

    def __init__(self, active: Sequence[_Active], positions: Positions) -> None:
        self._active = active
        self._positions = positions
        self._seen: dict[tuple[int, int], Float[Tensor, "batch pos n"]] = {}

    def change(
        self, layer: int, resid: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "batch pos d"] | None:
        """The residual after all edits of this layer; None where none is meant for any position of this pass."""
        h = resid.float()
        for number, one in enumerate(self._active):
            if layer in one.watched:
                self._seen[number, layer] = one.watched[layer](h)[1]
        norms = torch.linalg.vector_norm(h, dim=-1)
        parts = [
            part
            for number in range(len(self._active))
            if (part := self._part(number, layer, h, norms))
        ]
        if not parts:
            return None
        total, touched = h, parts[0].touched
        for part in parts:
            total = _added(total, part)
        for part in parts[1:]:
            touched = touched | part.touched
        changed = torch.where(touched[..., None], total.to(resid.dtype), resid)
        moved = (changed != resid).any(dim=-1)
        for part in parts:
            part.receipt.note(part.note._replace(moved=_picked(moved, part.rows)))
        return changed

    def _part(
        self,
        number: int,
        layer: int,
        h: Float[Tensor, "batch pos d"],
        norms: Float[Tensor, "batch pos"],
    ) -> _Part | None:
        one = self._active[number]
        if layer not in one.layers:
            return None
        bound, numbers, kinds, asks = (
            (given := one.layers[layer]).bound,
            given.numbers,
            given.kinds,
            given.asks,
        )
        meant = self._positions.meant(layer, kinds, norms)
        if meant is None:
            return None
        rows = None if h.shape[1] == 1 else meant.any(dim=-1)
        amounts, acts = coefficients(bound, _picked(h, rows))
        here = _picked(meant, rows).expand_as(acts)
        held = None if asks is None else self._held(number, asks, rows, acts)
        touched = meant[..., 0] if rows is None else rows
        if held is not None or meant.shape[-1] > 1:
            allowed = here if held is None else here & held
            amounts = torch.where(allowed, amounts, 0)
            touched = (
                allowed.any(dim=-1)[:, None]
                if rows is None
                else rows.masked_scatter(rows, allowed.any(dim=-1))
            )
        note = Note(
            bound, numbers, amounts, acts, here, held, _picked(norms, rows), _picked(touched, rows)
        )
        return _Part(one.receipt, note, rows, touched)

    def _held(
        self,
        number: int,
        asks: Sequence[tuple[int, int, float] | None],
        rows: Bool[Tensor, "batch pos"] | None,
        acts: Float[Tensor, "p n"],
    ) -> Bool[Tensor, "p n"]:
        """Whether each edit's condition holds at the positions looked at."""
        always = torch.ones_like(acts[:, 0], dtype=torch.bool)
        return torch.stack(
            [
                always
                if ask is None
                else _picked(self._seen[number, ask[0]][..., ask[1]], rows) > ask[2]
                for ask in asks
            ],
            dim=-1,
        )


def _picked(values: Tensor, rows: Bool[Tensor, "batch pos"] | None) -> Tensor:
    """The values (batch, pos, …) of the positions looked at, as (p, …)."""
    return values[:, 0] if rows is None else values[rows]


def _added(total: Float[Tensor, "batch pos d"], part: _Part) -> Float[Tensor, "batch pos d"]:
    amounts, d = part.note.amounts, part.note.bound.d
    if part.rows is None:
        return torch.addmm(total[:, 0], amounts, d)[:, None]
    total = total.clone()
    total[part.rows] += amounts @ d
    return total
