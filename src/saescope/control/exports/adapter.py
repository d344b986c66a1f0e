"""A LoRA in memory: its factors, computed from stored weights, and a model that runs with them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.bake_plan import BakePlan
from saescope.control.baking.weight_update import WeightUpdate
from saescope.engine.anatomy import EMBEDDING, Anatomy, Port
from saescope.engine.lm import LM
from saescope.engine.pages import mapped_pages, release_pages
from saescope.engine.residual import map_output, swap_parameter
from saescope.engine.shards import Shards

Kind = Literal["embedding", "linear", "conv1d", "experts"]
_CHUNK = 2**24  # values of a weight that are converted to float32 at a time


@dataclass(frozen=True)
class LoraAdapter:
    """The factors of all matrices that write to the residual; `n_biases` write to it as well."""

    factors: tuple["LoraFactors", ...]
    n_biases: int

    @property
    def rank(self) -> int:
        """The number of directions."""
        return int(self.factors[0].B.shape[1])

    @property
    def without_embedding(self) -> "LoraAdapter":
        """The same without what the embedding writes."""
        kept = (factors for factors in self.factors if factors.kind != "embedding")
        return replace(self, factors=tuple(kept))

    @property
    def has_experts(self) -> bool:
        """Whether the model is a mixture of experts."""
        return any(factors.kind == "experts" for factors in self.factors)


@dataclass(frozen=True)
class LoraFactors:
    """One writer's adapter in float32: its weight, as a map from width to d_model, gets B·A.

    For experts, A has one block per expert, (expert, rank, width), and all share B.
    """

    port: Port
    kind: Kind
    A: Float[Tensor, "*experts rank width"]
    B: Float[Tensor, "d_model rank"]

    @property
    def module(self) -> str:
        """The name of the weight's module in the decoder."""
        return self.port.name.rpartition(".")[0]

    @property
    def parameter(self) -> str:
        """The name of the weight in its module."""
        return self.port.name.rpartition(".")[2]


def compute_adapter(shards: Shards, anatomy: Anatomy, plan: BakePlan) -> LoraAdapter:
    """Compute the adapter of a projection at every write, reading one weight at a time."""
    adapters = []
    n_biases = 0
    for port in anatomy.writes:
        update = plan.changes[port.stored[0]]
        if port.is_bias:
            n_biases += 1
            continue
        blocks = [_compute_A(shards.tensor(name), update) for name in port.stored]
        A = blocks[0]
        if len(blocks) > 1:  # experts that the checkpoint stores one by one
            A = torch.stack(blocks)
        B = -update.map.U.float()
        adapters.append(LoraFactors(port, _kind(port, A), A.contiguous(), B.contiguous()))
    return LoraAdapter(tuple(adapters), n_biases)


@contextmanager
def adapted(lm: LM, adapter: LoraAdapter) -> Iterator[None]:
    """Within the block, an LM computes what peft does with the adapter on.

    That is W·x in the model's dtype, to which B·(A·x) is added in float32.
    """
    with ExitStack() as stack:
        for factors in adapter.factors:
            stack.enter_context(_applied(lm, factors))
        yield


def _kind(port: Port, A: Tensor) -> Kind:
    if port.layer == EMBEDDING:
        return "embedding"
    if A.ndim == 3:
        return "experts"
    if port.parameter_axis == -1:
        return "conv1d"
    return "linear"


def _compute_A(W: Tensor, update: WeightUpdate) -> Float[Tensor, "*experts rank width"]:
    """Return diag(s)·Vᵀ·W, with the axis of W that lies along the residual contracted.

    A constant k, which only a token embedding gets, is subtracted from every token's column.
    """
    scaled_V = (update.map.V * update.map.s).float()
    if W.ndim == 3 and update.axis == -1:
        A = torch.stack([(expert.float() @ scaled_V).T for expert in W])
    elif W.ndim == 3:
        A = torch.stack([scaled_V.T @ expert.float() for expert in W])
    elif update.axis == -1:
        chunks = W.split(max(1, _CHUNK // W.shape[1]))
        A = torch.cat([chunk.float() @ scaled_V for chunk in chunks]).T
    else:
        chunks = W.split(max(1, _CHUNK // W.shape[0]), dim=1)
        A = torch.cat([scaled_V.T @ chunk.float() for chunk in chunks], dim=1)
    release_pages(mapped_pages([W]))
    if update.map.k is not None:  # an embedding's: U is orthonormal, and k lies in its span
        A = A - (update.map.U.T @ update.map.k).float()[:, None]
    return A


def _applied(lm: LM, factors: LoraFactors) -> AbstractContextManager[None]:
    module = lm.model.get_submodule(factors.module)
    if factors.kind == "experts":
        transposed = bool(getattr(module, "is_transposed", False))
        change = partial(_add_to_weight, factors, transposed)
        return swap_parameter(module, factors.parameter, change)
    if factors.kind == "embedding":
        scale = float(getattr(module, "scalar_embed_scale", 1.0))
        return map_output(module, partial(_add_to_embedding, factors, scale))
    return map_output(module, partial(_add_to_output, factors))


def _add_to_weight(factors: LoraFactors, transposed: bool, W: Tensor) -> Tensor:
    A, B = factors.A.to(W.device), factors.B.to(W.device)
    added = B @ A
    if transposed:
        added = added.mT
    return W + added.to(W.dtype)


def _add_to_embedding(factors: LoraFactors, scale: float, ids: Tensor, output: Tensor) -> Tensor:
    A, B = factors.A.to(ids.device), factors.B.to(ids.device)
    added = A.T[ids] @ B.T
    return (output + scale * added).to(output.dtype)


def _add_to_output(factors: LoraFactors, x: Tensor, output: Tensor) -> Tensor:
    A, B = factors.A.to(x.device), factors.B.to(x.device)
    added = x.float() @ A.T @ B.T
    return (output + added).to(output.dtype)
