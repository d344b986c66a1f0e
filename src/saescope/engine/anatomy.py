"""Which parameters of a decoder write to the residual, which read it, and the norms between.

Known by the names that architectures give their parts. Numbers check that nothing was missed
(`control/baking/anatomy_check.py`): a name says what something is called, not what it does.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, nn
from transformers.pytorch_utils import Conv1D

from saescope.engine.config import FINAL_NORMS, read_config
from saescope.engine.names import sources
from saescope.engine.whole import blocks_of, causal_lm
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
    """A parameter with one axis along the residual, and the name of the norm between the two.

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

    `head.stored` is empty if the lm_head has no tensor of its own; `tied` says that it is the
    embedding's.
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
        """The layer up to which every kind of block occurs."""
        return max(self.kinds)

    def norms(self, writes: bool, reads: bool) -> set[str]:
        """Norms that stand between the residual and these ports."""
        ports = (*(self.writes if writes else ()), *((*self.reads, self.head) if reads else ()))
        return {port.norm for port in ports if port.norm is not None}


def read_anatomy(files: Files) -> Anatomy:
    """The anatomy of a checkpoint's decoder, from its config, headers and index alone."""
    config = read_config(files)
    model = causal_lm(config, torch.float32)
    decoder: nn.Module = getattr(model, model.base_model_prefix)
    path, blocks = blocks_of(decoder, config.num_hidden_layers)
    stored, _ = read_index(files)
    shapes = {name: tensor.shape for name, tensor in decoder.state_dict().items()}
    found = sources(shapes, stored, usual=f"{model.base_model_prefix}.")
    names = {name: tuple(source.flat) for name, source in found.items()}
    missing = [name for parts in names.values() for name in parts if name not in stored]
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
            sites[port.norm or f"{path}.{layer}.{_part(port.name, path)}"] = layer
    if not writes or writes[0].layer != EMBEDDING or len({p.layer for p in writes}) <= len(blocks):
        raise SourceError(
            f"architecture {config.model_type!r}: what writes to its residual is not known"
        )
    head = _head(model, decoder, stored, len(blocks))
    return Anatomy(
        kind=str(config.model_type),
        n_layers=len(blocks),
        d_model=int(config.hidden_size),
        prefix=next(n.removesuffix(k) for k, (n, *_) in names.items() if n.endswith(k)),
        writes=tuple(writes),
        reads=tuple(reads),
        head=head,
        tied=bool(config.tie_word_embeddings) or not head.stored,
        sites=tuple((layer, site) for site, layer in sites.items()),
        kinds=tuple(_kinds(blocks)),
        has_other_inputs=any(
            "vision" in name or "visual" in name or "audio" in name for name in stored
        ),
    )


def _embeddings(
    decoder: nn.Module, path: str, names: Mapping[str, tuple[str, ...]]
) -> Iterator[Port]:
    """Everything looked up before the first block: tokens first, then learned positions."""
    tokens = decoder.get_input_embeddings()  # type: ignore[operator]
    found = [
        (n, m)
        for n, m in decoder.named_modules()
        if isinstance(m, nn.Embedding) and not n.startswith(path)
    ]
    for name, _ in sorted(found, key=lambda item: item[1] is not tokens):
        yield Port(f"{name}.weight", EMBEDDING, -1, None, names[f"{name}.weight"])


def _ports(
    block: nn.Module, path: str, layer: int, names: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[Port, bool]]:
    """A block's ports, and whether they write."""
    flipped = {name for name, module in block.named_modules() if isinstance(module, Conv1D)}
    for name, parameter in block.named_parameters():
        owner, kind = (
            (name.rpartition(".")[::2]) if name.endswith((".weight", ".bias")) else (name, "weight")
        )
        leaf, full = owner.rpartition(".")[2], f"{path}.{name}"
        if leaf in _WRITERS:
            norm = _norm_after(block, name.partition(".")[0])
            axis = -1 if owner in flipped or parameter.ndim == 1 else -2
            yield Port(full, layer, axis, norm and f"{path}.{norm}", names[full]), True
        elif leaf in _READERS and kind == "weight":
            norm = _norm_before(block, name.partition(".")[0])
            yield (
                Port(
                    full,
                    layer,
                    -2 if owner in flipped else -1,
                    norm and f"{path}.{norm}",
                    names[full],
                ),
                False,
            )


def _norm_before(block: nn.Module, part: str) -> str | None:
    known = _NORM_BEFORE_ATTENTION if part in _ATTENTION else _NORM_BEFORE_MLP
    return next((name for name in known if hasattr(block, name)), None)


def _norm_after(block: nn.Module, part: str) -> str | None:
    """The norm between a writer and the residual, which Gemma has.

    Elsewhere a norm of that name stands before the MLP.
    """
    if not hasattr(block, "pre_feedforward_layernorm"):
        return None
    return "post_attention_layernorm" if part in _ATTENTION else "post_feedforward_layernorm"


def _part(name: str, path: str) -> str:
    return name.removeprefix(f"{path}.").split(".")[1]


def _head(model: Any, decoder: nn.Module, stored: Mapping[str, str], n_layers: int) -> Port:
    head = model.get_output_embeddings()
    path = next(name for name, module in model.named_modules() if module is head)
    norm = next(name for name in FINAL_NORMS if isinstance(getattr(decoder, name, None), nn.Module))
    name = f"{path}.weight"
    found = sources({name: Size(head.weight.shape)}, stored, usual="")[name].flat[0]
    return Port(name, n_layers, -1, norm, (found,) if found in stored else ())


def _kinds(blocks: nn.ModuleList) -> Iterator[int]:
    """The first layer of every kind of block."""
    seen = set()
    for layer, block in enumerate(blocks):
        kind = (type(block), tuple((name, tuple(p.shape)) for name, p in block.named_parameters()))
        if kind not in seen:
            seen.add(kind)
            yield layer
