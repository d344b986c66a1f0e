"""Bake methods: which parameters change, and the run-time intervention this equals. Pure.

method         parameters changed                reference intervention        exact
every-write    all that write to the residual    linear part at every write,   unless a norm
                                                 constant at the embedding     follows a write
readers-above  all that read the residual above  projection after every norm   unless a norm's
               the edit's layer, and lm_head     above the edit's layer        γ holds zeros, or
                                                                               it is about a mean
next-layer     all that read the residual in     projection after the edit's   never
               the next layer                    layer
writers-up-to  all that write to the residual    projection after the edit's   never
               up to the edit's layer            layer
bias           an MLP output bias, or else the   add a constant after the      if it is an MLP
               next attention output bias        edit's layer                  output bias

The parts of every-write are those of an affine map (`residual_map.py`). A projection about zero is
linear; a projection about a mean and a read-out clamp have a constant too, which enters once, with
the embedding. Weights that read the residual hold no constant: there the residual's own component
along the mean stands for it. A write is what the embedding, an
attention or an MLP adds to the residual. Interventions act at every position. "Exact" means that
the checkpoint equals the reference intervention up to rounding. It does not mean that it equals the
edit as steered: every-write, for example, projects at every write, not only after the edit's layer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from saescope.control.baking.bake_plan import BakePlan, EditVectors, ReferenceIntervention
from saescope.control.baking.residual_map import (
    NormProjection,
    ResidualMap,
    at_zeros,
    projection,
    readout_clamp,
)
from saescope.control.baking.settings import Method
from saescope.control.baking.weight_update import WeightUpdate
from saescope.control.edits import Edit
from saescope.engine.anatomy import EMBEDDING, Anatomy, Port
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
_NO_CONSTANT = (
    "weights that read the residual hold no constant, so its own component along the mean stands "
    "for the mean's part"
)
_NORM_FOLLOWS = "a following norm rescales each write, so only its direction can be projected"


def choose_method(edits: Sequence[EditVectors], requested: Method | None) -> Method:
    """Return the requested method, or the default method of the edits' op.

    Raises EditError for edits of several ops, and for a method that does not support the op.
    """
    ops = {vectors.edit.op for vectors in edits}
    if len(ops) > 1:
        raise EditError(
            f"edits of several ops ({', '.join(sorted(ops))}) cannot be baked together: "
            "bake one op at a time"
        )
    [op] = ops
    method = requested or DEFAULT_METHODS[op]
    if requested is None and acts_about_mean([vectors.edit for vectors in edits]):
        method = "readers-above"  # every-write shows the mean's part to every layer
    if op not in METHOD_OPS[method]:
        supporting = [repr(name) for name, supported in METHOD_OPS.items() if op in supported]
        raise EditError(f"method {method!r} does not support {op}: use {' or '.join(supporting)}")
    return method


def plan_projection(
    method: Method,
    anatomy: Anatomy,
    gains: Mapping[str, Tensor],
    edits: Sequence[EditVectors],
    embedding_scale: float = 1.0,
) -> BakePlan:
    """Return the plan of a method that projects or clamps.

    `gains` holds γ of the norms between residual and weights, by name. `embedding_scale` is the
    factor by which the model multiplies token embeddings.
    """
    match method:
        case "every-write":
            return _every_write(anatomy, gains, edits, embedding_scale)
        case "readers-above":
            return _readers_above(anatomy, gains, edits)
        case "next-layer":
            return _next_layer(anatomy, gains, edits)
        case "writers-up-to":
            return _writers_up_to(anatomy, gains, edits, embedding_scale)
        case "bias":
            raise ValueError("biases.plan_biases plans the method 'bias'")


def _every_write(
    anatomy: Anatomy,
    gains: Mapping[str, Tensor],
    edits: Sequence[EditVectors],
    embedding_scale: float,
) -> BakePlan:
    combined = _combined_map(edits)
    maps = dict.fromkeys(range(EMBEDDING, anatomy.n_layers), combined)
    changes = _write_updates(anatomy.writes, maps, gains)
    changes |= _constant_in_embedding(anatomy, combined, embedding_scale)
    reference = ReferenceIntervention(
        f"{_op_name(edits)} at every write: the embedding and what every attention and MLP adds",
        module_outputs={site: combined.linear for _, site in anatomy.sites},
        first_input=combined,
    )
    approximation_reason = None
    if any(port.norm for port in anatomy.writes):
        approximation_reason = _NORM_FOLLOWS
    return BakePlan(
        "every-write", changes, reference, approximation_reason, untie_lm_head=anatomy.tied
    )


def _constant_in_embedding(
    anatomy: Anatomy, residual_map: ResidualMap, embedding_scale: float
) -> dict[str, WeightUpdate]:
    """Return the updates that let a map's constant enter once, with the token embedding.

    The model multiplies stored embeddings by `embedding_scale`.
    """
    if residual_map.k is None:
        return {}
    stored_map = replace(residual_map, k=residual_map.k / embedding_scale)
    return dict.fromkeys(anatomy.embedding.stored, WeightUpdate(-1, stored_map))


def acts_about_mean(edits: Sequence[Edit]) -> bool:
    """Return whether any of the edits projects about a mean."""
    return any(edit.op == "project" and edit.about is not None for edit in edits)


def _op_name(edits: Sequence[EditVectors]) -> str:
    op = edits[0].edit.op
    return f"{op} about the mean" if acts_about_mean([v.edit for v in edits]) else op


def _readers_above(
    anatomy: Anatomy, gains: Mapping[str, Tensor], edits: Sequence[EditVectors]
) -> BakePlan:
    head = anatomy.head
    layers = range(head.layer + 1)
    # What a layer reads is mapped by the edits of all layers below it.
    edits_below = {layer: [v for v in edits if v.layer < layer] for layer in layers}
    maps, read_maps = _maps_by_layer(edits_below), _maps_by_layer(edits_below, constant=False)
    ports = [port for port in (*anatomy.reads, head) if port.layer in maps]
    return BakePlan(
        "readers-above",
        _read_updates(anatomy.reads, read_maps, gains),
        _projection_after_norms(ports, maps, gains, _op_name(edits)),
        _lost_constant(maps) or _lost_at_zeros(ports, maps, gains),
        head=read_update(head, read_maps[head.layer], gains),
        untie_lm_head=anatomy.tied,
    )


def _projection_after_norms(
    ports: Iterable[Port],
    maps: Mapping[int, ResidualMap],
    gains: Mapping[str, Tensor],
    op_name: str,
) -> ReferenceIntervention:
    """Return the intervention that projects what these ports read, before γ of their norms."""
    outputs, inputs, norms = {}, {}, {}
    for port in ports:
        residual_map = maps[port.layer]
        if port.norm is None:
            inputs[port.name.rpartition(".")[0]] = residual_map
        elif residual_map.k is not None or residual_map.share_at_zeros(gains[port.norm]):
            norms[port.norm] = NormProjection(residual_map, gains[port.norm])
        else:
            outputs[port.norm] = residual_map.after_norm(gains[port.norm])
    description = f"{op_name} after every norm above the layer, the final one included"
    return ReferenceIntervention(description, outputs, inputs, norms)


def _lost_constant(maps: Mapping[int, ResidualMap]) -> str | None:
    has_constant = any(residual_map.k is not None for residual_map in maps.values())
    return _NO_CONSTANT if has_constant else None


def _lost_at_zeros(
    ports: Iterable[Port], maps: Mapping[int, ResidualMap], gains: Mapping[str, Tensor]
) -> str | None:
    """Say how much of the directions no weight sees because a norm's γ is 0 there, or None.

    Of several such norms, the one that hides most is named.
    """
    shares = {
        port.norm: maps[port.layer].share_at_zeros(gains[port.norm])
        for port in ports
        if port.norm is not None
    }
    worst = max(shares, key=lambda norm: shares[norm], default=None)
    if worst is None or not shares[worst]:
        return None
    n_zeros, share = int(at_zeros(gains[worst]).sum()), 100 * shares[worst]
    return (
        f"norms hold zeros (γ = 0): past {worst} weights do not see {n_zeros} of the direction's "
        f"coordinates, {share:.2g} % of its square"
    )


def _next_layer(
    anatomy: Anatomy, gains: Mapping[str, Tensor], edits: Sequence[EditVectors]
) -> BakePlan:
    for vectors in edits:
        if vectors.layer == anatomy.n_layers - 1:
            raise EditError(
                f"edit of {vectors.edit.name}: method 'next-layer' needs a layer after "
                f"{vectors.layer}, which is the last one: use 'readers-above'"
            )
    layers = range(anatomy.n_layers)
    # What a layer reads is mapped by the edits of the layer just below it.
    edits_below = {layer: [v for v in edits if v.layer + 1 == layer] for layer in layers}
    maps = _maps_by_layer(edits_below, constant=False)
    return BakePlan(
        "next-layer",
        _read_updates(anatomy.reads, maps, gains),
        _projection_after_layers(edits),
        approximation_reason="later layers still see the component in the residual stream",
    )


def _writers_up_to(
    anatomy: Anatomy,
    gains: Mapping[str, Tensor],
    edits: Sequence[EditVectors],
    embedding_scale: float,
) -> BakePlan:
    layers = range(EMBEDDING, anatomy.n_layers)
    # What a layer writes is mapped by its own edits and those of all layers above it.
    maps = _maps_by_layer({layer: [v for v in edits if v.layer >= layer] for layer in layers})
    changes = _write_updates(anatomy.writes, maps, gains)
    changes |= _constant_in_embedding(anatomy, maps[EMBEDDING], embedding_scale)
    return BakePlan(
        "writers-up-to",
        changes,
        _projection_after_layers(edits),
        approximation_reason="earlier layers also read the edited residual",
        untie_lm_head=anatomy.tied,
    )


def _maps_by_layer(
    active_edits: Mapping[int, Sequence[EditVectors]], *, constant: bool = True
) -> dict[int, ResidualMap]:
    """Return the combined map of each layer's active edits, for layers that have any.

    Without `constant`, the residual's own component along the mean stands for a map's constant.
    """
    combined = _combined_map if constant else _map_without_constant
    return {layer: combined(edits) for layer, edits in active_edits.items() if edits}


def _map_without_constant(edits: Sequence[EditVectors]) -> ResidualMap:
    """Return the linear map near the edits': it reads the mean of their highest layer."""
    residual_map = _combined_map(edits)
    if residual_map.k is None:
        return residual_map
    highest = max(
        (vectors.edit for vectors in edits if vectors.edit.about is not None),
        key=lambda edit: edit.layer,
    )
    assert highest.about is not None
    return residual_map.without_constant(torch.tensor(highest.about.values), highest.about.spread)


def _combined_map(edits: Sequence[EditVectors]) -> ResidualMap:
    amounts = [vectors.edit.amount for vectors in edits]
    if edits[0].edit.op != "readout_clamp":
        means = [vectors.mean for vectors in edits]
        return projection([vectors.d for vectors in edits], amounts, means)
    return readout_clamp(
        w=torch.stack([vectors.w for vectors in edits]),
        b=torch.stack([vectors.b for vectors in edits]),
        d=torch.stack([vectors.d for vectors in edits]),
        target=torch.tensor(amounts, dtype=torch.float64),
    )


def _write_updates(
    ports: Iterable[Port], maps: Mapping[int, ResidualMap], gains: Mapping[str, Tensor]
) -> dict[str, WeightUpdate]:
    """Return updates by tensor name in the checkpoint, for parameters in layers that have a map."""
    updates: dict[str, WeightUpdate] = {}
    for port in ports:
        if port.layer in maps:
            update = write_update(port, maps[port.layer], gains)
            updates |= dict.fromkeys(port.stored, update)
    return updates


def _read_updates(
    ports: Iterable[Port], maps: Mapping[int, ResidualMap], gains: Mapping[str, Tensor]
) -> dict[str, WeightUpdate]:
    """Return updates by tensor name in the checkpoint, for parameters in layers that have a map."""
    updates: dict[str, WeightUpdate] = {}
    for port in ports:
        if port.layer in maps:
            update = read_update(port, maps[port.layer], gains)
            updates |= dict.fromkeys(port.stored, update)
    return updates


def write_update(
    port: Port, residual_map: ResidualMap, gains: Mapping[str, Tensor]
) -> WeightUpdate:
    """Return the update of a parameter that writes, accounting for a norm after it."""
    linear = residual_map.linear
    if port.norm is not None:
        linear = linear.before_norm(gains[port.norm])
    return WeightUpdate(port.axis, linear)


def read_update(port: Port, residual_map: ResidualMap, gains: Mapping[str, Tensor]) -> WeightUpdate:
    """Return the update of a parameter that reads, accounting for a norm before it."""
    linear = residual_map.linear
    if port.norm is not None:
        linear = linear.after_norm(gains[port.norm])
    return WeightUpdate(port.axis, linear.transposed)


def _projection_after_layers(edits: Sequence[EditVectors]) -> ReferenceIntervention:
    """Return the intervention that projects after each edit's layer."""
    layers = sorted({vectors.layer for vectors in edits})
    maps = _maps_by_layer({layer: [v for v in edits if v.layer == layer] for layer in layers})
    description = f"{_op_name(edits)} after layer {', '.join(map(str, layers))}"
    return ReferenceIntervention(description, block_outputs=maps)
