"""Which parameters of a decoder write to the residual, which read it, and the norms between.

Identified by name (`ports.py`); verified numerically in `control/baking/anatomy_check.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, nn

from saescope.engine.config import read_config
from saescope.engine.names import sources
from saescope.engine.ports import block_ports
from saescope.engine.whole import blocks_of, causal_lm, final_norm
from saescope.errors import SourceError
from saescope.sources.checkpoint import read_index
from saescope.sources.files import Files

EMBEDDING = -1


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
    kind, d_model = str(config.model_type), int(config.hidden_size)
    writes = list(_embeddings(decoder, path, names, d_model))
    reads: list[Port] = []
    sites: dict[str, int] = {}
    for layer, block in enumerate(blocks):
        before = f"{path}.{layer}."
        for found in block_ports(block, d_model):
            name, norm = before + found.name, found.norm and before + found.norm
            port = Port(name, layer, found.axis, norm, names[name])
            if found.writes:
                writes.append(port)
                sites[before + found.site] = layer
            else:
                reads.append(port)
    if {port.layer for port in writes} != set(range(EMBEDDING, len(blocks))):
        raise SourceError(
            f"architecture {kind!r}: cannot tell which parameters write to the residual"
        )
    head = _head(model, stored, len(blocks), _final_norm(decoder, path))
    return Anatomy(
        kind=kind,
        n_layers=len(blocks),
        d_model=d_model,
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
    decoder: nn.Module, path: str, names: Mapping[str, tuple[str, ...]], d_model: int
) -> Iterator[Port]:
    """Yield the embeddings before the first block: tokens first, then learned positions.

    Tables of another width (Gemma's inputs per layer) do not write to the residual themselves.
    """
    token_embedding = decoder.get_input_embeddings()  # type: ignore[operator]
    embeddings: list[str] = []
    for name, module in decoder.named_modules():
        if not isinstance(module, nn.Embedding) or name.startswith(path):
            continue
        if module.embedding_dim != d_model:
            continue
        if module is token_embedding:
            embeddings.insert(0, name)
        else:
            embeddings.append(name)
    for name in embeddings:
        yield Port(f"{name}.weight", EMBEDDING, -1, None, names[f"{name}.weight"])


def _head(model: Any, stored: Mapping[str, str], n_layers: int, norm: str) -> Port:
    head = model.get_output_embeddings()
    path = next(name for name, module in model.named_modules() if module is head)
    name = f"{path}.weight"
    head_source = sources({name: Size(head.weight.shape)}, stored, usual="")[name]
    stored_name = head_source.flat[0]
    stored_names = (stored_name,) if stored_name in stored else ()
    return Port(name, n_layers, -1, norm, stored_names)


def _final_norm(decoder: nn.Module, blocks_path: str) -> str:
    """Return the name of the norm beside the blocks, which some decoders (OPT) hold deeper."""
    owner = blocks_path.rpartition(".")[0]
    name = final_norm(decoder.get_submodule(owner))
    return f"{owner}.{name}" if owner else name


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
