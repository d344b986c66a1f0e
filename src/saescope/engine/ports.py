"""Which parameters of one block write to the residual or read it, by the names they have.

Architectures name the same parts differently. Names that are not listed here are found missing by
the numerical check in `control/baking/anatomy_check.py`, and so is a norm in another place.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

_WRITERS = {
    "o_proj", "out_proj", "dense", "down_proj", "fc2", "c_proj", "dense_4h_to_h", "fc_out",
    "output_linear", "w2", "per_layer_projection",
}  # fmt: skip
_READERS = {
    # attention
    "q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn", "query_key_value",
    "q_a_proj", "kv_a_proj_with_mqa",
    # linear attention
    "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "in_proj_qkvz", "in_proj_ba", "in_proj",
    # MLP
    "gate_proj", "up_proj", "gate_up_proj", "c_fc", "fc1", "fc_in", "dense_h_to_4h",
    "input_linear", "w1", "w3", "per_layer_input_gate",
    # routers of experts
    "gate", "router", "shared_expert_gate",
}  # fmt: skip
_ATTENTION = {
    "self_attn", "linear_attn", "attn", "attention", "self_attention", "mamba", "conv",
}  # fmt: skip
_NORM_BEFORE_ATTENTION = (
    "input_layernorm", "ln_1", "self_attn_layer_norm", "attention_layernorm", "ln_attn",
    "operator_norm",
)  # fmt: skip
_NORM_BEFORE_MLP = (
    "pre_feedforward_layernorm", "pre_mlp_layernorm", "pre_ff_layernorm", "feedforward_layernorm",
    "ffn_norm", "ln_2", "ln_mlp", "final_layer_norm",
)  # fmt: skip
_NORM_AFTER_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm")
# Before the MLP in most models, after the attention in those that norm what they write.
_POST_ATTENTION = "post_attention_layernorm"
# Parts that are neither attention nor MLP: the norms before and after them.
_OTHER_PARTS = {
    "per_layer_input_gate": (None, None),
    "per_layer_projection": (None, "post_per_layer_input_norm"),
}


@dataclass(frozen=True)
class BlockPort:
    """A parameter of a block that has one axis along the residual; names are the block's own.

    `site` is the module whose output the block adds to the residual, if the parameter writes.
    """

    name: str
    axis: int
    norm: str | None
    writes: bool

    @property
    def site(self) -> str:
        """The norm after the writer, or else the part of the block that it belongs to."""
        return self.norm or self.name.split(".")[0]


def block_ports(block: nn.Module, d_model: int) -> Iterator[BlockPort]:
    """Yield the parameters of a block that write to the residual or read it."""
    for name, parameter in block.named_parameters():
        module_name, is_bias = _split_parameter_name(name)
        leaf = module_name.rpartition(".")[2]
        writes = leaf in _WRITERS
        if not writes and (leaf not in _READERS or is_bias):
            continue
        axis = -1
        if not is_bias:
            axis = _axis(block, name, tuple(parameter.shape), d_model, writes=writes)
        if parameter.shape[axis] != d_model:
            continue
        norms = _norms(block, part=name.split(".")[0])
        yield BlockPort(name, axis, norms.after if writes else norms.before, writes)


def _split_parameter_name(name: str) -> tuple[str, bool]:
    """Return the name of the weight's module, and whether the parameter is its bias.

    Fused experts are bare parameters: there the name of the weight takes the module's place.
    """
    for ending in (".bias", "_bias"):
        if name.endswith(ending):
            return name.removesuffix(ending), True
    return name.removesuffix(".weight"), False


def _axis(
    block: nn.Module, name: str, shape: tuple[int, ...], d_model: int, *, writes: bool
) -> int:
    """Return the axis along the residual: of matrices (out, in), unless they are transposed."""
    if len(shape) == 1:
        return -1
    owner = block.get_submodule(name.rpartition(".")[0])
    transposed = isinstance(owner, Conv1D) or bool(getattr(owner, "is_transposed", False))
    axis, other = (-2, -1) if writes != transposed else (-1, -2)
    if shape[axis] != d_model and shape[other] == d_model:
        return other
    return axis


@dataclass(frozen=True)
class _Norms:
    before: str | None
    after: str | None


def _norms(block: nn.Module, part: str) -> _Norms:
    """Return the norms between the residual and a part of a block."""
    if part in _OTHER_PARTS:
        return _Norms(*_OTHER_PARTS[part])
    after_mlp = _first(block, _NORM_AFTER_MLP)
    before_attention = _first(block, _NORM_BEFORE_ATTENTION)
    after_attention = _first(block, ("post_self_attn_layernorm",))
    before_mlp = _first(block, _NORM_BEFORE_MLP)
    if hasattr(block, _POST_ATTENTION):
        if after_mlp is not None and after_attention is None:
            after_attention = _POST_ATTENTION
        elif before_mlp is None:
            before_mlp = _POST_ATTENTION
    if part in _ATTENTION:
        return _Norms(before_attention, after_attention)
    # Attention and MLP side by side share a norm.
    return _Norms(before_mlp or before_attention, after_mlp)


def _first(block: nn.Module, names: tuple[str, ...]) -> str | None:
    for name in names:
        if isinstance(getattr(block, name, None), nn.Module):
            return name
    return None
