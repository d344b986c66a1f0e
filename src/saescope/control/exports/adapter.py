"""The factors of a LoRA: computed from stored weights, named as peft names them, and applied to a running model."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.methods import BakePlan, WeightUpdate
from saescope.engine.anatomy import EMBEDDING, Anatomy, Port
from saescope.engine.lm import LM
from saescope.engine.pages import mapped_pages, release_pages
from saescope.engine.residual import exchanged, rewritten
from saescope.engine.shards import Shards
from saescope.errors import SourceError, first_line
from saescope.sources.files import Files

Kind = Literal["embedding", "linear", "conv1d", "experts"]
_PIECE = 2**24  # values of a weight in float32 at a time


@dataclass(frozen=True)
class Factors:
    """One writer's adapter in float32: what is added to its weight is B·A, with d_model first.

    Of experts A has a block for each, (expert, rank, width), and B is the same for all.
    """

    port: Port
    kind: Kind
    A: Float[Tensor, "*experts rank width"]
    B: Float[Tensor, "d_model rank"]

    @property
    def rank(self) -> int:
        """How many directions."""
        return int(self.B.shape[1])

    @property
    def module(self) -> str:
        """The module whose weight this is, in the decoder."""
        return self.port.name.rpartition(".")[0]


def factors(anatomy: Anatomy, shards: Shards, plan: BakePlan) -> tuple[list[Factors], int]:
    """The factors of every matrix that writes, one weight read at a time; and how many biases write beside them."""
    made, biases = [], 0
    for port in anatomy.writes:
        change = plan.changes[port.stored[0]]
        parts = [_contracted(shards, name, change) for name in port.stored]
        if parts[0].ndim == 1:
            biases += 1
            continue
        A = parts[0] if len(parts) == 1 else torch.stack(parts)
        made.append(
            Factors(port, _kind(port, A), A.contiguous(), (-change.spread).float().contiguous())
        )
    return made, biases


def _kind(port: Port, A: Tensor) -> Kind:
    if port.layer == EMBEDDING:
        return "embedding"
    if A.ndim == 3:
        return "experts"
    return "conv1d" if port.axis == -1 else "linear"


def _contracted(shards: Shards, name: str, change: WeightUpdate) -> Tensor:
    """diag(s)·contractᵀ·W, W's axis of the residual first: (rank, width), (expert, rank, width), of a bias (rank,)."""
    W, C = shards.tensor(name), (change.contract * change.s).float()
    if W.ndim == 1:
        return W.float() @ C
    if W.ndim == 3:
        found = torch.stack([C.T @ one.float() for one in W])
    elif change.axis == -1:
        rows = max(1, _PIECE // W.shape[1])
        found = torch.cat([piece.float() @ C for piece in W.split(rows)]).T
    else:
        columns = max(1, _PIECE // W.shape[0])
        found = torch.cat([C.T @ piece.float() for piece in W.split(columns, dim=1)], dim=1)
    release_pages(mapped_pages([W]))
    return found


@contextmanager
def adapted(lm: LM, made: Sequence[Factors]) -> Iterator[None]:
    """Within the block, an LM computes as peft does with the adapter on: W·x in its dtype, B·(A·x) in float32 added."""
    with ExitStack() as stack:
        for one in made:
            module = lm.decoder.get_submodule(one.module)
            if one.kind == "experts":
                stack.enter_context(
                    exchanged(module, one.port.name.rpartition(".")[2], partial(_stacked, one))
                )
                continue
            scale = float(getattr(module, "scalar_embed_scale", 1.0))
            change = (
                partial(_looked_up, one, scale)
                if one.kind == "embedding"
                else partial(_multiplied, one)
            )
            stack.enter_context(rewritten(module, change))
        yield


def _stacked(one: Factors, W: Tensor) -> Tensor:
    return W + (one.B.to(W.device) @ one.A.to(W.device)).to(W.dtype)


def _looked_up(one: Factors, scale: float, ids: Tensor, output: Tensor) -> Tensor:
    return (output + scale * (one.A.T.to(ids.device)[ids] @ one.B.T.to(ids.device))).to(
        output.dtype
    )


def _multiplied(one: Factors, x: Tensor, output: Tensor) -> Tensor:
    return (output + (x.float() @ one.A.T.to(x.device)) @ one.B.T.to(x.device)).to(output.dtype)


@dataclass(frozen=True)
class Names:
    """What peft calls things: where each writer's module is in the model that users load, and which are targeted."""

    prefix: str
    target_modules: list[str]
    target_parameters: list[str]


def names_of(files: Files, made: Sequence[Factors]) -> Names:
    """Names in what AutoModelForCausalLM makes of the checkpoint; raises SourceError where it makes nothing."""
    from transformers import AutoConfig, AutoModelForCausalLM

    build: Any = AutoModelForCausalLM.from_config
    try:
        with torch.device("meta"):
            model = build(AutoConfig.from_pretrained(files.path("config.json").parent))
    except Exception as error:  # models check their configs by exceptions of their own
        raise SourceError(
            f"{files.name} is not loaded by AutoModelForCausalLM: {first_line(error)}"
        ) from error
    parameters = [name for name, _ in model.named_parameters()]
    first = made[0].port.name
    prefix = next(
        (n.removesuffix(first) for n in parameters if n == first or n.endswith(f".{first}")), ""
    )
    mixture = any(one.kind == "experts" for one in made)
    by_parameter = [
        one for one in made if one.kind == "experts" or (mixture and _is_taken_for_experts(one))
    ]
    modules = [
        prefix + one.module for one in made if all(one is not other for other in by_parameter)
    ]
    stacks = [prefix + one.port.name for one in by_parameter]
    targeted = [
        name
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None
    ]
    return Names(prefix, _shortest(modules, targeted, 1), _shortest(stacks, parameters, 2))


def _is_taken_for_experts(one: Factors) -> bool:
    """Whether peft would read its module's name as that of experts stored one by one, and leave the module out."""
    return one.module.rpartition(".")[2] == "down_proj"


def _shortest(wanted: Sequence[str], present: Sequence[str], least: int) -> list[str]:
    """Ends of names, of so many parts at least, that fit the wanted ones alone; else the names themselves."""
    for parts in range(least, 4):
        ends = sorted({".".join(name.split(".")[-parts:]) for name in wanted})
        if {n for n in present if any(n == end or n.endswith(f".{end}") for end in ends)} == set(
            wanted
        ):
            return ends
    return sorted(wanted)


def peft_tensors(made: Sequence[Factors], names: Names) -> dict[str, Tensor]:
    """The adapter's tensors by the names that peft stores them under."""
    tensors: dict[str, Tensor] = {}
    for one in made:
        place = f"base_model.model.{names.prefix}{one.module}"
        if one.kind == "embedding":
            tensors |= {f"{place}.lora_embedding_A": one.A, f"{place}.lora_embedding_B": one.B}
        elif (
            one.kind == "experts"
        ):  # A's rows are expert after expert, B's columns direction after direction
            n_experts = len(one.A)
            B = one.B[:, :, None].expand(-1, -1, n_experts).flatten(1)
            tensors |= {
                f"{place}.lora_A.weight": one.A.flatten(0, 1),
                f"{place}.lora_B.weight": B.contiguous(),
            }
        else:
            tensors |= {f"{place}.lora_A.weight": one.A, f"{place}.lora_B.weight": one.B.clone()}
    return tensors
