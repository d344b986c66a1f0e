"""A constant added after a layer, as a bias: where stock architectures have a slot for it, or a flag that makes one."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.methods import (
    BakePlan,
    EditVectors,
    WeightUpdate,
    constant_hook,
    summed_constants,
)
from saescope.engine.anatomy import Anatomy
from saescope.engine.whole import causal_lm
from saescope.errors import EditError

_INSTEAD = "use a GGUF control vector (saescope export), or steer it at run time"


def plan_biases(anatomy: Anatomy, config: Any, bound: Sequence[EditVectors]) -> BakePlan:
    """The plan of the method `bias`; raises EditError where the architecture has no slot.

    The MLP's output has a bias in GPT-2 and Phi, and under `mlp_bias` in Llama: exact. Elsewhere `attention_bias` gives
    one to the next layer's attention output, which that attention does not see itself: approximate.
    """
    added = summed_constants(bound)
    hook = constant_hook(added)
    if any(port.norm for port in anatomy.writes):
        raise EditError(
            f"{anatomy.kind} puts a norm after its MLP, where a bias would be scaled: {_INSTEAD}"
        )
    slots = {n: _slot(anatomy, n) for n in added}
    if all(slots.values()):
        return BakePlan(
            "bias", {slot: _plus(v) for n, v in added.items() if (slot := slots[n])}, hook
        )
    if getattr(config, "mlp_bias", None) is False and (
        new := _made_by(anatomy, config, "mlp_bias")
    ):
        places = {f"layers.{n}.mlp.down_proj.bias": v for n, v in added.items()}
        return BakePlan(
            "bias", {}, hook, new=_filled(anatomy, new, places), flags={"mlp_bias": True}
        )
    if getattr(config, "attention_bias", None) is False and (
        new := _made_by(anatomy, config, "attention_bias")
    ):
        return _on_attention(anatomy, new, added, hook)
    raise EditError(f"{anatomy.kind} has no bias where a constant could stand: {_INSTEAD}")


def _plus(v: Float[Tensor, "d_model"]) -> WeightUpdate:
    """Only adds; what rounding loses is looked at along v."""
    along = (v / v.norm())[:, None]
    return WeightUpdate(-1, along, torch.zeros_like(along), torch.zeros(1, dtype=v.dtype), v)


def _slot(anatomy: Anatomy, layer: int) -> str | None:
    """The stored bias of the layer's MLP output."""
    own = [
        p
        for p in anatomy.writes
        if p.layer == layer and p.name.endswith(".bias") and ".mlp." in p.name
    ]
    return own[0].stored[0] if own else None


def _made_by(anatomy: Anatomy, config: Any, flag: str) -> dict[str, tuple[int, ...]]:
    """The parameters that the architecture has under this flag and not without."""
    changed = copy.deepcopy(config)
    setattr(changed, flag, True)
    before, after = (causal_lm(one, torch.float32) for one in (config, changed))
    known = getattr(before, before.base_model_prefix).state_dict().keys()
    state = getattr(after, after.base_model_prefix).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name not in known}


def _filled(
    anatomy: Anatomy, new: Mapping[str, tuple[int, ...]], values: Mapping[str, Tensor]
) -> dict[str, tuple[tuple[int, ...], Tensor | None]]:
    """The new parameters by stored name, zero but for these."""
    if missing := values.keys() - new.keys():
        raise EditError(
            f"{anatomy.kind} has no {min(missing)} that could hold the constant: {_INSTEAD}"
        )
    return {f"{anatomy.prefix}{name}": (shape, values.get(name)) for name, shape in new.items()}


def _on_attention(
    anatomy: Anatomy, new: Mapping[str, tuple[int, ...]], added: Mapping[int, Tensor], hook: Any
) -> BakePlan:
    places: dict[str, Tensor] = {}
    for layer, v in added.items():
        # The next attention that has an output bias; of a hybrid's layers not each one is.
        outputs = [f"layers.{n}.self_attn.o_proj.bias" for n in range(layer + 1, anatomy.n_layers)]
        place = next((name for name in outputs if name in new), None)
        if place is None:
            raise EditError(
                f"after layer {layer} no attention has an output bias to hold the constant: {_INSTEAD}"
            )
        places[place] = places[place] + v if place in places else v
    why = "the constant enters after the next attention, which does not see it"
    return BakePlan(
        "bias", {}, hook, why, new=_filled(anatomy, new, places), flags={"attention_bias": True}
    )
