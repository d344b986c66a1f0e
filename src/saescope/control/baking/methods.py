"""Ways to put edits into weights: which parameters change, how, and which hook that is equal or
close to. Pure.

every-write      project all that writes to the residual: exactly the hook at every write
readers-above    project all that reads it above the layer, lm_head included: exactly the hook after
                 the norms there
next-layer       project what reads it in the next layer (the article's form): close to the hook
                 after the layer
writers-up-to    project what writes to it up to the layer: close to the hook after the layer
bias             a constant on the layer's MLP output: exactly `add` after the layer, if there is a
                 parameter for it
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.residual_map import ResidualMap, projection, readout_clamp, shift
from saescope.control.baking.settings import Method
from saescope.control.baking.weight_update import WeightUpdate
from saescope.control.edits import Edit
from saescope.engine.anatomy import Anatomy, Port
from saescope.errors import EditError

METHOD_OPS: Mapping[Method, tuple[str, ...]] = {
    "every-write": ("project", "readout_clamp"),
    "readers-above": ("project",),
    "next-layer": ("project",),
    "writers-up-to": ("project",),
    "bias": ("add",),
}
DEFAULT_METHODS: Mapping[str, Method] = {
    "project": "every-write",
    "readout_clamp": "every-write",
    "add": "bias",
}
_NORM_FOLLOWS = "a following norm rescales each write, so only its direction can be projected"


@dataclass(frozen=True, eq=False)
class EditVectors:
    """An edit with its vectors in float64: it reads with (w, b) and writes along d."""

    edit: Edit
    w: Float[Tensor, "d_model"]
    b: Float[Tensor, ""]
    d: Float[Tensor, "d_model"]

    @property
    def layer(self) -> int:
        """The layer after which the edit acts."""
        return self.edit.layer


@dataclass(frozen=True)
class ResidualHook:
    """What a method is equal or close to: maps of modules' outputs, and of the first block's input.

    Outputs are by site: a module's name, or `block N`.
    """

    description: str
    outputs: Mapping[str, ResidualMap] = field(default_factory=dict)
    first: ResidualMap | None = None


class NewParameter(NamedTuple):
    """A parameter that the checkpoint does not have yet; without values it is zero."""

    shape: tuple[int, ...]
    values: Tensor | None


@dataclass(frozen=True)
class BakePlan:
    """What a method changes in a checkpoint, and the hook it is equal or close to."""

    method: Method
    changes: Mapping[str, WeightUpdate]
    "Updates by stored name."

    hook: ResidualHook
    why_not: str | None = None
    "Why the result is not exactly the hook, but for rounding; None if it is."

    new: Mapping[str, NewParameter] = field(default_factory=dict)
    "Parameters to add, by stored name."

    flags: Mapping[str, bool] = field(default_factory=dict)
    "Keys to set in the config."

    head: WeightUpdate | None = None
    "The update of the lm_head."

    unties: bool = False
    "Whether the lm_head gets separate weights instead of the embedding's."

    @property
    def exact(self) -> bool:
        """Whether the result is its hook but for rounding."""
        return self.why_not is None


def choose_method(edits: Sequence[EditVectors], requested: Method | None) -> Method:
    """The requested method, or the default of the edits' op.

    Raises EditError for edits of several ops, and for a method that does not take this op.
    """
    ops = {vectors.edit.op for vectors in edits}
    if len(ops) > 1:
        raise EditError(
            f"edits of several ops ({', '.join(sorted(ops))}) go into weights one op at a time"
        )
    [op] = ops
    method = requested or DEFAULT_METHODS[op]
    if op not in METHOD_OPS[method]:
        fitting = [repr(name) for name, taken in METHOD_OPS.items() if op in taken]
        raise EditError(f"method {method!r} does not take {op}: use {' or '.join(fitting)}")
    return method


def plan_projection(
    method: Method,
    anatomy: Anatomy,
    gains: Mapping[str, Tensor],
    edits: Sequence[EditVectors],
    embedding_scale: float = 1.0,
) -> BakePlan:
    """The plan of a method that projects.

    `gains` are γ of the norms that it passes, `embedding_scale` what the model multiplies token
    embeddings by.
    """
    match method:
        case "every-write":
            return _every_write(anatomy, gains, edits, embedding_scale)
        case "readers-above":
            return _readers_above(anatomy, gains, edits)
        case "next-layer":
            return _next_layer(anatomy, gains, edits)
        case "writers-up-to":
            return _writers_up_to(anatomy, gains, edits)
        case "bias":
            raise ValueError("biases.plan_biases plans the method 'bias'")


def _every_write(
    anatomy: Anatomy,
    gains: Mapping[str, Tensor],
    edits: Sequence[EditVectors],
    embedding_scale: float,
) -> BakePlan:
    combined = _combined_map(edits)
    changes = _by_stored_name(anatomy.writes, lambda port: write_update(port, combined, gains))
    if combined.k is not None:
        k = combined.k / embedding_scale
        for name in anatomy.embedding.stored:
            changes[name] = WeightUpdate(-1, combined.V, combined.U, combined.s, k)
    op = edits[0].edit.op
    hook = ResidualHook(
        f"{op} at every write: the embedding and what every attention and MLP adds",
        {site: combined.linear for _, site in anatomy.sites},
        first=combined,
    )
    norm_follows = any(port.norm for port in anatomy.writes)
    return BakePlan(
        "every-write",
        changes,
        hook,
        why_not=_NORM_FOLLOWS if norm_follows else None,
        unties=anatomy.tied,
    )


def _readers_above(
    anatomy: Anatomy, gains: Mapping[str, Tensor], edits: Sequence[EditVectors]
) -> BakePlan:
    map_at = _map_of_layer(edits, lambda edited, layer: edited < layer)
    changes = _by_stored_name(anatomy.reads, _read_updates(map_at, gains))
    norms = {}
    for port in (*anatomy.reads, anatomy.head):
        combined = map_at(port.layer)
        if combined is not None and port.norm:
            norms[port.norm] = combined.after_norm(gains[port.norm])
    return BakePlan(
        "readers-above",
        changes,
        ResidualHook("project after every norm above the layer, the final one included", norms),
        head=_read_updates(map_at, gains)(anatomy.head),
        unties=anatomy.tied,
    )


def _next_layer(
    anatomy: Anatomy, gains: Mapping[str, Tensor], edits: Sequence[EditVectors]
) -> BakePlan:
    for vectors in edits:
        if vectors.layer == anatomy.n_layers - 1:
            raise EditError(
                f"edit of {vectors.edit.name}: after the last layer there is no next one; "
                "use readers-above"
            )
    map_at = _map_of_layer(edits, lambda edited, layer: edited + 1 == layer)
    changes = _by_stored_name(anatomy.reads, _read_updates(map_at, gains))
    why_not = "the residual passes the next layer by"
    return BakePlan("next-layer", changes, _hook_after_layers(edits), why_not)


def _writers_up_to(
    anatomy: Anatomy, gains: Mapping[str, Tensor], edits: Sequence[EditVectors]
) -> BakePlan:
    map_at = _map_of_layer(edits, lambda edited, layer: edited >= layer)

    def update(port: Port) -> WeightUpdate | None:
        combined = map_at(port.layer)
        return None if combined is None else write_update(port, combined, gains)

    changes = _by_stored_name(anatomy.writes, update)
    why_not = "the layers up to it read an edited residual too"
    return BakePlan(
        "writers-up-to", changes, _hook_after_layers(edits), why_not, unties=anatomy.tied
    )


def write_update(port: Port, m: ResidualMap, gains: Mapping[str, Tensor]) -> WeightUpdate:
    """The update of a parameter that writes, past the norm that may follow it."""
    if port.norm is not None:
        m = m.linear.before_norm(gains[port.norm])
    return WeightUpdate(port.axis, m.V, m.U, m.s)


def read_update(port: Port, m: ResidualMap, gains: Mapping[str, Tensor]) -> WeightUpdate:
    """The update of a parameter that reads, past the norm before it."""
    m = m.linear
    if port.norm is not None:
        m = m.after_norm(gains[port.norm])
    return WeightUpdate(port.axis, m.U, m.V, m.s)


def _read_updates(
    map_at: Callable[[int], ResidualMap | None], gains: Mapping[str, Tensor]
) -> Callable[[Port], WeightUpdate | None]:
    def update(port: Port) -> WeightUpdate | None:
        combined = map_at(port.layer)
        return None if combined is None else read_update(port, combined, gains)

    return update


def _by_stored_name(
    ports: Iterable[Port], update_of: Callable[[Port], WeightUpdate | None]
) -> dict[str, WeightUpdate]:
    updates: dict[str, WeightUpdate] = {}
    for port in ports:
        update = update_of(port)
        if update is not None:
            updates |= dict.fromkeys(port.stored, update)
    return updates


def _map_of_layer(
    edits: Sequence[EditVectors], applies: Callable[[int, int], bool]
) -> Callable[[int], ResidualMap | None]:
    """The combined map of the edits that apply at a layer, by `applies(edited layer, layer)`."""
    combined: dict[tuple[int, ...], ResidualMap] = {}

    def map_at(layer: int) -> ResidualMap | None:
        chosen = tuple(n for n, vectors in enumerate(edits) if applies(vectors.layer, layer))
        if not chosen:
            return None
        if chosen not in combined:
            combined[chosen] = _combined_map([edits[n] for n in chosen])
        return combined[chosen]

    return map_at


def _combined_map(edits: Sequence[EditVectors]) -> ResidualMap:
    amounts = [vectors.edit.amount for vectors in edits]
    if edits[0].edit.op != "readout_clamp":
        return projection([vectors.d for vectors in edits], amounts)
    return readout_clamp(
        w=torch.stack([vectors.w for vectors in edits]),
        b=torch.stack([vectors.b for vectors in edits]),
        d=torch.stack([vectors.d for vectors in edits]),
        target=torch.tensor(amounts, dtype=torch.float64),
    )


def _hook_after_layers(edits: Sequence[EditVectors]) -> ResidualHook:
    """The edits after their layers, at every position."""
    layers = sorted({vectors.layer for vectors in edits})
    maps = {}
    for layer in layers:
        maps[f"block {layer}"] = _combined_map([v for v in edits if v.layer == layer])
    return ResidualHook(f"project after layer {', '.join(map(str, layers))}", maps)


def summed_constants(edits: Sequence[EditVectors]) -> dict[int, Float[Tensor, "d_model"]]:
    """What `add` edits add after each layer."""
    total: dict[int, Tensor] = {}
    for vectors in edits:
        step = vectors.edit.amount * vectors.d
        total[vectors.layer] = total.get(vectors.layer, torch.zeros_like(step)) + step
    return total


def constant_hook(constants: Mapping[int, Tensor]) -> ResidualHook:
    """Constants added after layers, as a hook at every position."""
    layers = ", ".join(map(str, sorted(constants)))
    maps = {f"block {layer}": shift(vector) for layer, vector in constants.items()}
    return ResidualHook(f"add after layer {layers}", maps)
