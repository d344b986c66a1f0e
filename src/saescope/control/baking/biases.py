"""Bake `add` edits as output biases: existing, or enabled by a config flag."""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.bake_plan import BakePlan, EditVectors, NewParameter
from saescope.control.baking.constants import constant_intervention, summed_constants
from saescope.control.baking.residual_map import ResidualMap
from saescope.control.baking.weight_update import WeightUpdate
from saescope.engine.anatomy import Anatomy, Port
from saescope.engine.config import ModelConfig
from saescope.engine.stock import decoder_of, stock_model
from saescope.errors import EditError

Shapes = Mapping[str, tuple[int, ...]]
# From a module's name, and whether later parts of its block are left out.
Factor = Callable[[str, bool], float]
_ALTERNATIVE = "use a GGUF control vector (export it), or steer it at run time"


def plan_biases(
    anatomy: Anatomy, config: ModelConfig, edits: Sequence[EditVectors], factor: Factor
) -> BakePlan:
    """Return the plan of the method `bias`; raise EditError if no bias can hold the constants.

    `factor` returns by how much an output bias of a module arrives in the residual; its second
    argument says whether what later parts of the block make of the bias is to be left out.

    The plan is exact if the MLP output has a bias (GPT-2, Phi) or can have one (`mlp_bias` in
    Llama). Otherwise `attention_bias` is used. The next attention output bias holds the constant;
    that attention layer itself does not see it, so the result is approximate.
    """
    constants = summed_constants(edits)
    reference = constant_intervention(constants)
    if any(port.norm for port in anatomy.writes):
        raise EditError(
            f"{anatomy.kind} has a norm after its MLP, which would rescale a bias: {_ALTERNATIVE}"
        )
    biases = {layer: _mlp_output_bias(anatomy, layer) for layer in constants}
    ports = {layer: port for layer, port in biases.items() if port is not None}
    if len(ports) == len(constants):
        changes = {}
        for layer, port in ports.items():
            v = constants[layer] / factor(_module_of(port.name), False)
            changes[port.stored[0]] = _add_update(v)
        return BakePlan("bias", changes, reference)
    shapes = _parameters_of_flag(anatomy, config, "mlp_bias")
    if shapes:
        values = {f"layers.{layer}.mlp.down_proj.bias": v for layer, v in constants.items()}
        values = {name: v / factor(_module_of(name), False) for name, v in values.items()}
        new = _new_parameters(anatomy, shapes, values)
        return BakePlan("bias", {}, reference, new=new, flags={"mlp_bias": True})
    shapes = _parameters_of_flag(anatomy, config, "attention_bias")
    if not shapes:
        raise EditError(f"{anatomy.kind} has no bias that could hold a constant: {_ALTERNATIVE}")
    values = _values_at_next_attention(anatomy, shapes, constants)
    values = {name: v / factor(_module_of(name), True) for name, v in values.items()}
    return BakePlan(
        "bias",
        {},
        reference,
        approximation_reason="the constant enters after the next attention, which does not see it",
        new=_new_parameters(anatomy, shapes, values),
        flags={"attention_bias": True},
    )


def _mlp_output_bias(anatomy: Anatomy, layer: int) -> Port | None:
    """Return the layer's MLP output bias, if it has one that every token gets."""
    for port in anatomy.writes:
        if port.layer != layer or not port.name.endswith(".bias") or "expert" in port.name:
            continue
        if any(part in port.name for part in (".mlp.", ".fc2.")):
            return port
    return None


def _module_of(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _add_update(v: Float[Tensor, "d_model"]) -> WeightUpdate:
    """Return an update that only adds v; V holds its direction, to measure rounding along it."""
    unit = (v / v.norm())[:, None]
    s = torch.zeros(1, dtype=v.dtype)
    return WeightUpdate(axis=-1, map=ResidualMap(U=torch.zeros_like(unit), V=unit, s=s, k=v))


def _parameters_of_flag(anatomy: Anatomy, config: ModelConfig, flag: str) -> Shapes:
    """Return the parameters that only this flag creates; none if it is already set or unknown."""
    if getattr(config.text, flag, None) is not False:
        return {}
    outer = copy.deepcopy(config.outer)
    text = outer.get_text_config(decoder=True)
    setattr(text, flag, True)
    before = _parameter_shapes(config)
    after = _parameter_shapes(ModelConfig(outer, text))
    return {name: shape for name, shape in after.items() if name not in before}


def _parameter_shapes(config: ModelConfig) -> Shapes:
    state = decoder_of(stock_model(config, torch.float32)).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _new_parameters(
    anatomy: Anatomy, shapes: Shapes, values: Mapping[str, Tensor]
) -> dict[str, NewParameter]:
    """Return the new parameters by stored name, zero except for `values`."""
    missing = values.keys() - shapes.keys()
    if missing:
        raise EditError(
            f"{anatomy.kind} has no {min(missing)} that could hold the constant: {_ALTERNATIVE}"
        )
    return {
        f"{anatomy.prefix}{name}": NewParameter(shape, values.get(name))
        for name, shape in shapes.items()
    }


def _values_at_next_attention(
    anatomy: Anatomy, shapes: Shapes, constants: Mapping[int, Tensor]
) -> dict[str, Tensor]:
    """Map each constant to the output bias of the next attention layer.

    Hybrid models lack attention in some layers.
    """
    values: dict[str, Tensor] = {}
    for layer, v in constants.items():
        above = range(layer + 1, anatomy.n_layers)
        candidates = [f"layers.{n}.self_attn.o_proj.bias" for n in above]
        name = next((name for name in candidates if name in shapes), None)
        if name is None:
            raise EditError(
                f"no attention layer after layer {layer} has an output bias for the constant: "
                f"{_ALTERNATIVE}"
            )
        values[name] = values.get(name, torch.zeros_like(v)) + v
    return values
