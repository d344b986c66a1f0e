"""Which parameters of a decoder write to the residual, which read it, and the norms between.

Identified by name (`ports.py`); verified numerically in `control/baking/anatomy_check.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from saescope.engine.contents import Contents
from saescope.engine.ports import block_ports
from saescope.engine.stock import blocks_of, final_norm
from saescope.errors import SourceError
from saescope.sources.files import Files

EMBEDDING = -1


@dataclass(frozen=True)
class Port:
    """A parameter with one axis along the residual.

    `norm` names the norm between the residual and the parameter; `stored` names its tensors, and
    `axis` is theirs. `parameter_axis` is the module's own, which transformers may transpose.

    Embeddings write at layer -1, the lm_head reads at the layer after the last.
    """

    name: str
    layer: int
    axis: int
    norm: str | None
    stored: tuple[str, ...]
    parameter_axis: int = -1

    @property
    def is_bias(self) -> bool:
        """Whether the parameter is added as it is; experts keep theirs in a matrix."""
        return self.name.endswith((".bias", "_bias"))


@dataclass(frozen=True)
class Anatomy:
    """A decoder's ports, the modules whose output is added to the residual, and their stored names.

    `names` are the stored tensors of every parameter; a new one is named after `prefix`.
    `head.stored` is empty if the lm_head has no stored tensor. `tied`: the lm_head uses the
    embedding's weight. `kinds`: the layer where each block type first appears.
    """

    kind: str
    n_layers: int
    d_model: int
    prefix: str
    names: Mapping[str, tuple[str, ...]]
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
    contents = Contents.open(files, torch.float32)
    if contents.dequantizer is not None:
        raise SourceError(
            f"{files.name} is quantised ({contents.dequantizer.method}), so its tensors cannot "
            "be edited: load it with transformers, dequantised, and save it with save_pretrained"
        )
    config, decoder = contents.config.text, contents.text_decoder
    path, blocks = blocks_of(decoder, config)
    sources = contents.require(
        contents.decoder_path + name for name, _ in decoder.named_parameters()
    )
    names = {
        name.removeprefix(contents.decoder_path): source.names for name, source in sources.items()
    }
    kind, d_model = str(config.model_type), int(config.hidden_size)
    writes = list(_embeddings(decoder, path, names, d_model))
    reads: list[Port] = []
    sites: dict[str, int] = {}
    for port, site in _block_ports(blocks, path, names, d_model):
        stored = _as_stored(port, contents)
        if site is None:
            reads.append(stored)
        else:
            writes.append(stored)
            sites[site] = port.layer
    if {port.layer for port in writes} != set(range(EMBEDDING, len(blocks))):
        raise SourceError(
            f"architecture {kind!r}: cannot tell which parameters write to the residual"
        )
    own_head = contents.sources.get(contents.head_name)
    head_stored = own_head.names if own_head is not None else ()
    head = Port(contents.head_name, len(blocks), -1, final_norm(decoder, config), head_stored)
    return Anatomy(
        kind=kind,
        n_layers=len(blocks),
        d_model=d_model,
        prefix=_stored_prefix(names),
        names=names,
        writes=tuple(writes),
        reads=tuple(reads),
        head=head,
        tied=contents.tied,
        sites=tuple((layer, site) for site, layer in sites.items()),
        kinds=tuple(_kinds(blocks)),
        has_other_inputs=_has_other_inputs(contents.shard_of),
    )


def _block_ports(
    blocks: nn.ModuleList, path: str, names: Mapping[str, tuple[str, ...]], d_model: int
) -> Iterator[tuple[Port, str | None]]:
    """Yield every block's ports; those that write with the module that adds to the residual."""
    for layer, block in enumerate(blocks):
        before = f"{path}.{layer}."
        for found in block_ports(block, d_model):
            name, norm = before + found.name, found.norm and before + found.norm
            port = Port(name, layer, found.axis, norm, names[name], found.axis)
            yield port, before + found.site if found.writes else None


def _as_stored(port: Port, contents: Contents) -> Port:
    """Return the port with its axis in the stored tensors, which transformers may transpose."""
    name = contents.decoder_path + port.name
    source, shape = contents.source(name), contents.model.get_parameter(name).shape
    axis = source.stored_axis(port.axis, len(shape)) if source is not None else None
    if source is None or axis is None:
        raise SourceError(
            f"architecture {contents.config.text.model_type!r}: the stored tensors of {name} "
            "mix parameters along the residual, so its weights cannot be edited"
        )
    return replace(port, axis=axis)


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
