"""Ways to put edits into weights: which parameters change, how, and which hook that is equal or near to. Pure.

every-write      everything that writes to the residual is projected: exactly the hook at every write
readers-above    everything that reads it above the layer, lm_head included: exactly the hook after the norms there
next-layer       only what reads it in the next layer (the article's form): near the hook after the layer
writers-up-to    what writes to it up to the layer: near the hook after the layer
bias             a constant on the layer's MLP output: exactly `add` after the layer, where there is a slot for it
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.residual_map import ResidualMap, projection, readout_clamp, shift
from saescope.control.baking.settings import Method
from saescope.control.edits import Edit
from saescope.engine.anatomy import Anatomy, Port
from saescope.errors import EditError

OPS: Mapping[Method, tuple[str, ...]] = {
    "every-write": ("project", "readout_clamp"),
    "readers-above": ("project",),
    "next-layer": ("project",),
    "writers-up-to": ("project",),
    "bias": ("add",),
}
USUAL: Mapping[str, Method] = {
    "project": "every-write",
    "readout_clamp": "every-write",
    "add": "bias",
}

_SCALED = "a norm after the weights gives each write its size, so its direction is projected and its size is not"


@dataclass(frozen=True)
class EditVectors:
    """An edit with its vectors in float64: what it reads with (w, b) and what it writes along (d)."""

    edit: Edit
    w: Float[Tensor, "d_model"]
    b: Float[Tensor, ""]
    d: Float[Tensor, "d_model"]


@dataclass(frozen=True)
class WeightUpdate:
    """What becomes of a tensor along its axis on the residual: W − spread·diag(s)·(contractᵀ W) there, + k.

    Writers are multiplied by a map from the left (contract V, spread U), readers from the right (contract U, spread V).
    """

    axis: int
    contract: Float[Tensor, "d_model n"]
    spread: Float[Tensor, "d_model n"]
    s: Float[Tensor, "n"]
    k: Float[Tensor, "d_model"] | None = None


@dataclass(frozen=True)
class ResidualHook:
    """What a method is equal or near to: maps of modules' outputs, and of what the first block is given."""

    description: str
    outputs: Mapping[str, ResidualMap] = field(default_factory=dict)
    first: ResidualMap | None = None


@dataclass(frozen=True)
class BakePlan:
    """The changes by stored name, tensors that are new, whether the lm_head is parted from the embedding, the hook.

    `exact` says that but for rounding the result is the hook; `why_not` is why it is not. `flags` are set in
    the config.
    """

    method: Method
    changes: Mapping[str, WeightUpdate]
    hook: ResidualHook
    why_not: str | None = None
    new: Mapping[str, tuple[tuple[int, ...], Tensor | None]] = field(default_factory=dict)
    flags: Mapping[str, bool] = field(default_factory=dict)
    head: WeightUpdate | None = None
    unties: bool = False

    @property
    def exact(self) -> bool:
        """Whether it is its hook but for rounding."""
        return self.why_not is None


def choose_method(bound: Sequence[EditVectors], wanted: Method | None) -> Method:
    """The method asked for, or the usual one of these ops; raises EditError where it does not take them."""
    ops = {one.edit.op for one in bound}
    if len(ops) > 1:
        raise EditError(
            f"edits of several ops ({', '.join(sorted(ops))}) go into weights one op at a time"
        )
    [op] = ops
    method = wanted or USUAL[op]
    if op not in OPS[method]:
        fitting = [name for name, taken in OPS.items() if op in taken]
        raise EditError(f"--method {method} does not take {op}: use {' or '.join(fitting)}")
    return method


def plan_projection(
    method: Method,
    anatomy: Anatomy,
    gains: Mapping[str, Tensor],
    bound: Sequence[EditVectors],
    scale: float = 1.0,
) -> BakePlan:
    """The plan of a method that projects; `gains` are γ of the norms it passes, `scale` what token embeddings are
    multiplied by.
    """
    match method:
        case "every-write":
            return _every_write(anatomy, gains, bound, scale)
        case "readers-above":
            return _readers(anatomy, gains, bound, above=True)
        case "next-layer":
            return _readers(anatomy, gains, bound, above=False)
        case "writers-up-to":
            return _writers_up_to(anatomy, gains, bound)
        case "bias":
            raise ValueError("a bias is planned by `biases`")


def _map_of(bound: Sequence[EditVectors]) -> ResidualMap:
    if bound[0].edit.op == "readout_clamp":
        w, b, d = (torch.stack([getattr(one, name) for one in bound]) for name in ("w", "b", "d"))
        return readout_clamp(
            w, b, d, torch.tensor([one.edit.amount for one in bound], dtype=torch.float64)
        )
    return projection([one.d for one in bound], [one.edit.amount for one in bound])


def _maps(bound: Sequence[EditVectors]) -> Callable[[Callable[[int], bool]], ResidualMap | None]:
    """The map of those edits whose layer fits, each made once."""
    made: dict[tuple[int, ...], ResidualMap] = {}

    def of(fits: Callable[[int], bool]) -> ResidualMap | None:
        chosen = tuple(n for n, one in enumerate(bound) if fits(one.edit.layer))
        if chosen and chosen not in made:
            made[chosen] = _map_of([bound[n] for n in chosen])
        return made.get(chosen)

    return of


def written(port: Port, m: ResidualMap, gains: Mapping[str, Tensor]) -> WeightUpdate:
    """The change of a parameter that writes, past the norm that may follow it."""
    m = m if port.norm is None else m.linear.before_norm(gains[port.norm])
    return WeightUpdate(port.axis, m.V, m.U, m.s)


def read(port: Port, m: ResidualMap, gains: Mapping[str, Tensor]) -> WeightUpdate:
    """The change of a parameter that reads, past the norm before it."""
    m = m.linear if port.norm is None else m.linear.after_norm(gains[port.norm])
    return WeightUpdate(port.axis, m.U, m.V, m.s)


def _each(changes: Iterator[tuple[Port, WeightUpdate]]) -> dict[str, WeightUpdate]:
    return {name: change for port, change in changes for name in port.stored}


def _every_write(
    anatomy: Anatomy, gains: Mapping[str, Tensor], bound: Sequence[EditVectors], scale: float
) -> BakePlan:
    m = _map_of(bound)
    changes = _each((port, written(port, m, gains)) for port in anatomy.writes)
    if m.k is not None:
        for name in anatomy.embedding.stored:
            changes[name] = WeightUpdate(-1, m.V, m.U, m.s, m.k / scale)
    normed = any(port.norm for port in anatomy.writes)
    return BakePlan(
        method="every-write",
        changes=changes,
        hook=ResidualHook(
            f"{bound[0].edit.op} at every write: the embedding and what every attention and MLP adds",
            {site: m.linear for _, site in anatomy.sites},
            first=m,
        ),
        why_not=_SCALED if normed else None,
        unties=anatomy.tied,
    )


def _readers(
    anatomy: Anatomy, gains: Mapping[str, Tensor], bound: Sequence[EditVectors], *, above: bool
) -> BakePlan:
    maps = _maps(bound)
    last = anatomy.n_layers - 1
    if not above and (beyond := [one for one in bound if one.edit.layer == last]):
        raise EditError(
            f"edit of {beyond[0].edit.name}: after the last layer there is no next one; use readers-above"
        )

    def at(layer: int) -> ResidualMap | None:
        return maps(lambda own: own < layer) if above else maps(lambda own: own + 1 == layer)

    changes = _each((port, read(port, m, gains)) for port in anatomy.reads if (m := at(port.layer)))
    if not above:
        return BakePlan(
            "next-layer", changes, _after_layers(bound), "the residual passes the next layer by"
        )
    ports = (*anatomy.reads, anatomy.head)
    norms = {p.norm: m.after_norm(gains[p.norm]) for p in ports if p.norm and (m := at(p.layer))}
    head = at(anatomy.n_layers)
    return BakePlan(
        method="readers-above",
        changes=changes,
        hook=ResidualHook(
            "project after every norm above the layer, the final one included", norms
        ),
        head=None if head is None else read(anatomy.head, head, gains),
        unties=anatomy.tied,
    )


def _writers_up_to(
    anatomy: Anatomy, gains: Mapping[str, Tensor], bound: Sequence[EditVectors]
) -> BakePlan:
    maps = _maps(bound)

    def at(layer: int) -> ResidualMap | None:
        return maps(lambda own: own >= layer)

    changes = _each(
        (port, written(port, m, gains)) for port in anatomy.writes if (m := at(port.layer))
    )
    why = "the layers up to it read an edited residual too"
    return BakePlan("writers-up-to", changes, _after_layers(bound), why, unties=anatomy.tied)


def _after_layers(bound: Sequence[EditVectors]) -> ResidualHook:
    """The edits where they say: after their layers, at every position."""
    layers = sorted({one.edit.layer for one in bound})
    maps = {n: _map_of([one for one in bound if one.edit.layer == n]) for n in layers}
    return ResidualHook(
        f"project after layer {', '.join(map(str, layers))}",
        {f"block {n}": m for n, m in maps.items()},
    )


def summed_constants(bound: Sequence[EditVectors]) -> dict[int, Float[Tensor, "d_model"]]:
    """What `add` edits add after each layer."""
    total: dict[int, Tensor] = {}
    for one in bound:
        step = one.edit.amount * one.d
        total[one.edit.layer] = total[one.edit.layer] + step if one.edit.layer in total else step
    return total


def constant_hook(added: Mapping[int, Tensor]) -> ResidualHook:
    """The `add` edits as a hook at every position."""
    where = ", ".join(map(str, sorted(added)))
    return ResidualHook(
        f"add after layer {where}", {f"block {n}": shift(v) for n, v in added.items()}
    )
