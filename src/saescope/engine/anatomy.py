"""Which parameters of a decoder write to the residual, which read it, and the norms between.

Identified by module name; verified numerically in `control/baking/anatomy_check.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, nn
from transformers.pytorch_utils import Conv1D

from saescope.engine.config import read_config
from saescope.engine.names import sources
from saescope.engine.whole import blocks_of, causal_lm, final_norm
from saescope.errors import SourceError
from saescope.sources.checkpoint import read_index
from saescope.sources.files import Files

EMBEDDING = -1
_WRITERS = ("o_proj", "out_proj", "dense", "down_proj", "fc2", "c_proj")
_READERS = (
    "q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn",
    "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a",
    "gate_proj", "up_proj", "gate_up_proj", "c_fc", "fc1", "gate", "shared_expert_gate",
)  # fmt: skip
_ATTENTION = ("self_attn", "linear_attn", "attn")
_NORM_BEFORE_ATTENTION = ("input_layernorm", "ln_1")
_NORM_BEFORE_MLP = (
    "pre_feedforward_layernorm",
    "ln_2",
    "post_attention_layernorm",
    *_NORM_BEFORE_ATTENTION,
)


@dataclass(frozen=True)
class Port:
    """A parameter with one axis along the residual.

    `norm` names the norm between the residual and the parameter; `stored` names its tensors.

    Embeddings write at layer -1, the lm_head reads at the layer after the last.
    """

    name: str
    layer: int
    axis: int
    norm: str | None
    stored: tuple[str, ...]


@dataclass(frozen=True)
class Anatomy:
    """A decoder's ports, the modules whose output is added to the residual, and their stored names.

    `head.stored` is empty if the lm_head has no stored tensor. `tied`: the lm_head uses the
    embedding's weight. `kinds`: the layer where each block type first appears.
    """

    kind: str
    n_layers: int
    d_model: int
    prefix: str
    writes: tuple[Port, ...]
    reads: tuple[Port, ...]
    head: Port
    tied: bool
    sites: tuple[tuple[int, str], ...]
    kinds: tuple[int, ...]
    has_other_inputs: bool

    @property
    def embedding(self) -> Port:
        """The token embedding."""
        return self.writes[0]

    @property
    def last_kind(self) -> int:
        """Smallest layer by which every block type has appeared."""
        return max(self.kinds)

    def norms(self, writes: bool, reads: bool) -> set[str]:
        """Return the norms between the residual and the ports that write, read, or both."""
        ports: list[Port] = []
        if writes:
            ports += self.writes
        if reads:
            ports += [*self.reads, self.head]
        return {port.norm for port in ports if port.norm is not None}


def read_anatomy(files: Files) -> Anatomy:
    """Read the anatomy of a checkpoint's decoder from its config, headers and index alone."""
    config = read_config(files)
    model = causal_lm(config, torch.float32)
    decoder: nn.Module = getattr(model, model.base_model_prefix)
    path, blocks = blocks_of(decoder, config.num_hidden_layers)
    stored, _ = read_index(files)
    shapes = {name: tensor.shape for name, tensor in decoder.state_dict().items()}
    tensor_sources = sources(shapes, stored, usual=f"{model.base_model_prefix}.")
    names = {name: tuple(source.flat) for name, source in tensor_sources.items()}
    needed = [name for stored_names in names.values() for name in stored_names]
    missing = [name for name in needed if name not in stored]
    if missing:
        raise SourceError(f"{files.name} has no tensor {missing[0]} ({len(missing)} missing)")
    writes = list(_embeddings(decoder, path, names))
    reads: list[Port] = []
    sites: dict[str, int] = {}
    for layer, block in enumerate(blocks):
        for port, is_writer in _ports(block, f"{path}.{layer}", layer, names):
            if not is_writer:
                reads.append(port)
                continue
            writes.append(port)
            site = port.norm or f"{path}.{layer}.{_part(port.name, path)}"
            sites[site] = layer
    if {port.layer for port in writes} != set(range(EMBEDDING, len(blocks))):
        raise SourceError(
            f"architecture {config.model_type!r}: "
            "cannot tell which parameters write to the residual"
        )
    head = _head(model, decoder, stored, len(blocks))
    return Anatomy(
        kind=str(config.model_type),
        n_layers=len(blocks),
        d_model=int(config.hidden_size),
        prefix=_stored_prefix(names),
        writes=tuple(writes),
        reads=tuple(reads),
        head=head,
        tied=bool(config.tie_word_embeddings) or not head.stored,
        sites=tuple((layer, site) for site, layer in sites.items()),
        kinds=tuple(_kinds(blocks)),
        has_other_inputs=_has_other_inputs(stored),
    )


def _embeddings(
    decoder: nn.Module, path: str, names: Mapping[str, tuple[str, ...]]
) -> Iterator[Port]:
    """Yield the embeddings before the first block: tokens first, then learned positions."""
    token_embedding = decoder.get_input_embeddings()  # type: ignore[operator]
    embeddings: list[str] = []
    for name, module in decoder.named_modules():
        if not isinstance(module, nn.Embedding) or name.startswith(path):
            continue
        if module is token_embedding:
            embeddings.insert(0, name)
        else:
            embeddings.append(name)
    for name in embeddings:
        yield Port(f"{name}.weight", EMBEDDING, -1, None, names[f"{name}.weight"])


def _ports(
    block: nn.Module, path: str, layer: int, names: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[Port, bool]]:
    """Yield a block's ports, and whether each of them writes."""
    transposed = {name for name, module in block.named_modules() if isinstance(module, Conv1D)}
    for name, parameter in block.named_parameters():
        module_name, kind = _split_parameter_name(name)
        leaf = module_name.split(".")[-1]
        part = name.split(".")[0]
        full_name = f"{path}.{name}"
        last_axis_is_output = module_name in transposed
        if leaf in _WRITERS:
            norm = _joined(path, _norm_after(block, part))
            axis = -1 if last_axis_is_output or parameter.ndim == 1 else -2
            yield Port(full_name, layer, axis, norm, names[full_name]), True
        elif leaf in _READERS and kind == "weight":
            norm = _joined(path, _norm_before(block, part))
            axis = -2 if last_axis_is_output else -1
            yield Port(full_name, layer, axis, norm, names[full_name]), False


def _split_parameter_name(name: str) -> tuple[str, str]:
    """Return the module's name and `weight` or `bias`; fused experts are bare parameters."""
    if not name.endswith((".weight", ".bias")):
        return name, "weight"
    module_name, _, kind = name.rpartition(".")
    return module_name, kind


def _joined(path: str, norm: str | None) -> str | None:
    if norm is None:
        return None
    return f"{path}.{norm}"


def _norm_before(block: nn.Module, part: str) -> str | None:
    candidates = _NORM_BEFORE_ATTENTION if part in _ATTENTION else _NORM_BEFORE_MLP
    for name in candidates:
        if hasattr(block, name):
            return name
    return None


def _norm_after(block: nn.Module, part: str) -> str | None:
    """Return the norm between a writer and the residual.

    Only Gemma has one; in other models `post_attention_layernorm` precedes the MLP.
    """
    if not hasattr(block, "pre_feedforward_layernorm"):
        return None
    return "post_attention_layernorm" if part in _ATTENTION else "post_feedforward_layernorm"


def _part(name: str, path: str) -> str:
    return name.removeprefix(f"{path}.").split(".")[1]


def _head(model: Any, decoder: nn.Module, stored: Mapping[str, str], n_layers: int) -> Port:
    head = model.get_output_embeddings()
    path = next(name for name, module in model.named_modules() if module is head)
    name = f"{path}.weight"
    head_source = sources({name: Size(head.weight.shape)}, stored, usual="")[name]
    stored_name = head_source.flat[0]
    stored_names = (stored_name,) if stored_name in stored else ()
    return Port(name, n_layers, -1, final_norm(decoder), stored_names)


def _stored_prefix(names: Mapping[str, tuple[str, ...]]) -> str:
    """Return what precedes the decoder's parameter names in the checkpoint's tensor names."""
    for name, stored_names in names.items():
        if stored_names[0].endswith(name):
            return stored_names[0].removesuffix(name)
    raise SourceError("no tensor of the checkpoint is named like a parameter of its decoder")


def _kinds(blocks: nn.ModuleList) -> Iterator[int]:
    """Yield the first layer of every block type."""
    seen = set()
    for layer, block in enumerate(blocks):
        shapes = tuple((name, tuple(p.shape)) for name, p in block.named_parameters())
        kind = (type(block), shapes)
        if kind not in seen:
            seen.add(kind)
            yield layer


def _has_other_inputs(stored: Mapping[str, str]) -> bool:
    """Return whether the checkpoint also has weights for images or sound."""
    return any(word in name for name in stored for word in ("vision", "visual", "audio"))
