"""What a job needs of a model: tensors, files and bytes up to a layer, without reading weights."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from saescope.engine.contents import Contents
from saescope.engine.names import Source
from saescope.engine.stock import final_norm
from saescope.engine.weights import parameter_dtypes
from saescope.errors import SourceError
from saescope.sources.budget import WeightBytes
from saescope.sources.checkpoint import CONFIG, INDEX, TOKENIZER_FILES, TensorInfo, read_header

_STORED_AS = {torch.float32: "F32", torch.bfloat16: "BF16"}
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk")
_EXPERTS = ".experts."
_PARALLEL_HEADERS = 8


def needed_parameters(contents: Contents, last: int) -> dict[str, int | None]:
    """Return the parameters that the output of layer `last` depends on: their block, or None.

    These are the parameters that `load_lm` fills: buffers only if the checkpoint holds them.
    """
    norm = f"{contents.decoder_path}{final_norm(contents.text_decoder, contents.config.text)}."
    needed: dict[str, int | None] = {}
    for name in _decoder_parameters(contents):
        layer = _layer_of(contents, name)
        if not name.startswith(norm) and (layer is None or layer <= last):
            needed[name] = layer
    return needed


def file_names(contents: Contents, last: int) -> list[str]:
    """Return the files to fetch for the output of layer `last`."""
    if contents.config.gguf is not None:
        return [contents.config.gguf]
    sources = contents.require(needed_parameters(contents, last))
    shards = {contents.shard_of[name] for source in sources.values() for name in source.names}
    existing = contents.files.names()
    small = [name for name in (*TOKENIZER_FILES, INDEX) if name in existing]
    return [CONFIG, *small, *sorted(shards)]


def _decoder_parameters(contents: Contents) -> list[str]:
    buffers = {name for name, _ in contents.model.named_buffers()}
    names = [name for name in contents.model.state_dict() if name.startswith(contents.decoder_path)]
    return [name for name in names if name not in buffers or contents.source(name)]


def _layer_of(contents: Contents, name: str) -> int | None:
    if not name.startswith(contents.blocks_path):
        return None
    return int(name.removeprefix(contents.blocks_path).partition(".")[0])


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a model up to layer `last`, from config, index and headers."""

    contents: Contents
    last: int
    on_device: bool

    @property
    def config(self) -> Any:
        """The text decoder's config."""
        return self.contents.config.text

    @cached_property
    def needed(self) -> dict[str, int | None]:
        """The block of each needed parameter; None beside the blocks."""
        return needed_parameters(self.contents, self.last)

    @cached_property
    def _parameters(self) -> Mapping[str, Tensor]:
        parameters: Mapping[str, Tensor] = self.contents.model.state_dict()
        return parameters

    @cached_property
    def _dtypes(self) -> dict[str, torch.dtype]:
        return parameter_dtypes(self.contents, "", self._parameters)

    @cached_property
    def _headers(self) -> Mapping[str, TensorInfo]:
        """Describe the needed stored tensors; those of a GGUF file are all copied and have none."""
        if self.contents.config.gguf is not None:
            return {}
        sources = self.contents.require(self.needed).values()
        names = dict.fromkeys(name for source in sources for name in source.names)
        return _tensor_infos(self.contents, names)

    def embedding(self) -> WeightBytes:
        """Return the weights beside the blocks."""
        return self._sum(name for name, layer in self.needed.items() if layer is None)

    def blocks(self) -> tuple[WeightBytes, ...]:
        """Return the weights of every block up to the last one."""
        return tuple(self._sum(self._block(layer)) for layer in range(self.last + 1))

    def rest(self) -> WeightBytes:
        """Return what the whole model has beyond: as stored if the weights before are."""
        head = self.contents.head_name
        names = [name for name in _decoder_parameters(self.contents) if name not in self.needed]
        if self.contents.stored(head) != self.contents.stored(self.contents.embedding_name):
            names.append(head)
        n_bytes = sum(self._bytes_held(name) for name in names)
        embedding = self.embedding()
        if embedding.anonymous:
            return WeightBytes(converted=n_bytes, stored=n_bytes)
        return WeightBytes(mapped=n_bytes)

    def packed_head(self) -> int:
        """Return the bytes of the lm_head that bfloat16 matmuls of a CPU lay out anew."""
        is_packed = self.contents.dtype == torch.bfloat16 and not self.on_device
        return self._bytes_held(self.contents.head_name) if is_packed else 0

    def activation_widths(self) -> tuple[int, int]:
        """Return the sum of the widths inside a block, and the largest: of the widest block."""
        widest: tuple[int, int] = (0, 0)
        for layer in range(self.last + 1):
            widths = [self._width(name) for name in self._block(layer)]
            widest = max(widest, (sum(widths), max(widths, default=0)))
        return widest

    def weights_per_token(self) -> float:
        """Return the number of block weights that a token meets."""
        weights = 0.0
        for name, layer in self.needed.items():
            if layer is not None:
                share = self._experts_used(name) / self._n_experts(name)
                weights += self._parameters[name].numel() * share
        return weights

    def _block(self, layer: int) -> list[str]:
        return [name for name, block in self.needed.items() if block == layer]

    def _width(self, name: str) -> int:
        """Return how wide one side of a matrix is, whose other side is the residual."""
        tensor = self._parameters[name]
        if tensor.ndim < 2:
            return 0
        d_model, used = int(self.config.hidden_size), self._experts_used(name)
        width = used * tensor.numel() // self._n_experts(name) // d_model
        # Every expert used gets, and gives, residuals of its own.
        return width + used * d_model if _EXPERTS in name else width

    def _n_experts(self, name: str) -> int:
        tensor = self._parameters[name]
        return int(tensor.shape[0]) if _EXPERTS in name and tensor.ndim > 1 else 1

    def _experts_used(self, name: str) -> int:
        n_experts = self._n_experts(name)
        counts = (getattr(self.config, key, None) for key in _EXPERTS_PER_TOKEN)
        used = next((count for count in counts if isinstance(count, int)), n_experts)
        return min(used, n_experts)

    def _sum(self, names: Iterable[str]) -> WeightBytes:
        return sum(map(self._weight_bytes, names), WeightBytes())

    def _weight_bytes(self, name: str) -> WeightBytes:
        source = self.contents.source(name)
        held = self._bytes_held(name)
        if source is None or not self._headers:
            return WeightBytes(copied=held)
        infos = [self._headers[stored] for stored in source.names]
        if source.converter is not None or self.contents.dequantizer is not None:
            return WeightBytes(copied=held, source=_read_at_once(source, infos))
        [info] = infos
        if self.on_device:
            return WeightBytes(copied=held, source=info.bytes)
        if info.dtype == _STORED_AS.get(self._dtypes[name]):
            return WeightBytes(mapped=held)
        if info.dtype in _STORED_AS.values():
            return WeightBytes(converted=held, stored=info.bytes, source=info.bytes)
        return WeightBytes(copied=held, source=info.bytes)  # such as float16: never computed with

    def _bytes_held(self, name: str) -> int:
        return self._parameters[name].numel() * self._dtypes[name].itemsize


def _read_at_once(source: Source, infos: Iterable[TensorInfo]) -> int:
    """Experts of a stack are copied one by one; other conversions read all their tensors."""
    sizes = [info.bytes for info in infos]
    return max(sizes) if source.is_stack else sum(sizes)


def _tensor_infos(contents: Contents, names: Iterable[str]) -> dict[str, TensorInfo]:
    """Describe stored tensors, from the headers of their shards."""
    names_in: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        names_in[contents.shard_of[name]].append(name)
    with ThreadPoolExecutor(_PARALLEL_HEADERS) as pool:
        headers = list(pool.map(lambda shard: read_header(contents.files, shard), names_in))
    infos = {}
    for (shard, inside), header in zip(names_in.items(), headers, strict=True):
        for name in inside:
            if name not in header:
                raise SourceError(
                    f"{contents.files.name}: {shard} has no tensor {name}, but the index says so"
                )
            infos[name] = header[name]
    return infos
