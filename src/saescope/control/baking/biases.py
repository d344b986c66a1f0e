"""Constants added after layers as biases, which the architecture has or a config flag creates."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.methods import (
    BakePlan,
    EditVectors,
    NewParameter,
    constant_hook,
    summed_constants,
)
from saescope.control.baking.weight_update import WeightUpdate
from saescope.engine.anatomy import Anatomy
from saescope.engine.whole import causal_lm
from saescope.errors import EditError

Shapes = Mapping[str, tuple[int, ...]]
_INSTEAD = "use a GGUF control vector (export it), or steer it at run time"


def plan_biases(anatomy: Anatomy, config: Any, edits: Sequence[EditVectors]) -> BakePlan:
    """The plan of the method `bias`; raises EditError if the architecture has no place for it.

    Exact if the MLP's output has a bias (GPT-2, Phi) or can have one (`mlp_bias` in Llama). With
    `attention_bias` the next layer's attention output holds the constant, which that attention does
    not see itself: approximate.
    """
    constants = summed_constants(edits)
    hook = constant_hook(constants)
    if any(port.norm for port in anatomy.writes):
        raise EditError(
            f"{anatomy.kind} puts a norm after its MLP, which would rescale a bias: {_INSTEAD}"
        )
    biases = {layer: _mlp_output_bias(anatomy, layer) for layer in constants}
    if all(biases.values()):
        changes = {str(biases[layer]): _add_update(v) for layer, v in constants.items()}
        return BakePlan("bias", changes, hook)
    shapes = _parameters_of_flag(anatomy, config, "mlp_bias")
    if shapes:
        values = {f"layers.{layer}.mlp.down_proj.bias": v for layer, v in constants.items()}
        new = _new_parameters(anatomy, shapes, values)
        return BakePlan("bias", {}, hook, new=new, flags={"mlp_bias": True})
    shapes = _parameters_of_flag(anatomy, config, "attention_bias")
    if not shapes:
        raise EditError(f"{anatomy.kind} has no bias that could hold a constant: {_INSTEAD}")
    values = _values_at_next_attention(anatomy, shapes, constants)
    return BakePlan(
        "bias",
        {},
        hook,
        why_not="the constant enters after the next attention, which does not see it",
        new=_new_parameters(anatomy, shapes, values),
        flags={"attention_bias": True},
    )


def _mlp_output_bias(anatomy: Anatomy, layer: int) -> str | None:
    """The stored bias of the layer's MLP output, if it has one."""
    for port in anatomy.writes:
        if port.layer == layer and port.name.endswith(".bias") and ".mlp." in port.name:
            return port.stored[0]
    return None


def _add_update(v: Float[Tensor, "d_model"]) -> WeightUpdate:
    """Only adds v; rounding is measured along it."""
    unit = (v / v.norm())[:, None]
    return WeightUpdate(-1, unit, torch.zeros_like(unit), torch.zeros(1, dtype=v.dtype), v)


def _parameters_of_flag(anatomy: Anatomy, config: Any, flag: str) -> Shapes:
    """The parameters that exist with this flag only; none if it is set already or unknown."""
    if getattr(config, flag, None) is not False:
        return {}
    with_flag = copy.deepcopy(config)
    setattr(with_flag, flag, True)
    before = _parameter_shapes(config)
    after = _parameter_shapes(with_flag)
    return {name: shape for name, shape in after.items() if name not in before}


def _parameter_shapes(config: Any) -> Shapes:
    model = causal_lm(config, torch.float32)
    state = getattr(model, model.base_model_prefix).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _new_parameters(
    anatomy: Anatomy, shapes: Shapes, values: Mapping[str, Tensor]
) -> dict[str, NewParameter]:
    """The new parameters by stored name, zero except for these values."""
    missing = values.keys() - shapes.keys()
    if missing:
        raise EditError(
            f"{anatomy.kind} has no {min(missing)} that could hold the constant: {_INSTEAD}"
        )
    return {
        f"{anatomy.prefix}{name}": NewParameter(shape, values.get(name))
        for name, shape in shapes.items()
    }


def _values_at_next_attention(
    anatomy: Anatomy, shapes: Shapes, constants: Mapping[int, Tensor]
) -> dict[str, Tensor]:
    """Each constant by the next attention's output bias; in hybrids not every layer has one."""
    values: dict[str, Tensor] = {}
    for layer, v in constants.items():
        above = range(layer + 1, anatomy.n_layers)
        candidates = [f"layers.{n}.self_attn.o_proj.bias" for n in above]
        name = next((name for name in candidates if name in shapes), None)
        if name is None:
            raise EditError(
                f"after layer {layer} no attention has an output bias to hold the constant: "
                f"{_INSTEAD}"
            )
        values[name] = values.get(name, torch.zeros_like(v)) + v
    return values
