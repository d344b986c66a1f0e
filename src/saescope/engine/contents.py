"""What a checkpoint holds: the one place that says which stored tensor fills which parameter.

Decided as stock transformers decides it: its model class, its conversion mapping, its rule for tied
weights. Loading, planning, baking, exporting and comparing all ask here.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from saescope.engine.config import ModelConfig, read_config
from saescope.engine.names import Source, assign_tensors
from saescope.engine.quantized import Dequantizer, GgufReader, find_dequantizer
from saescope.engine.shards import TensorReader
from saescope.engine.stock import (
    blocks_of,
    check_decoder,
    decoder_of,
    head_path,
    path_of,
    stock_model,
)
from saescope.errors import CheckpointWarning, SourceError
from saescope.sources.checkpoint import gguf_name, read_index
from saescope.sources.files import Files

_NAMED_UNUSED = 3  # unused tensors that a message names
_SCALES = (
    "_scale", "_scale_inv", ".scale", ".scales", ".qweight", ".qzeros", ".SCB", ".absmax",
    ".quant_map", ".weight_packed", ".weight_shape", ".zero_point", ".g_idx",
)  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """A checkpoint's tensors, seen as the parameters of the class that transformers opens.

    Attributes:
        model: That class on the meta device: names, shapes and dtypes, without weights.
        decoder_path: The text decoder inside `model`; its blocks are at `blocks_path`.
        dequantizer: How full weights are made of a quantised checkpoint; None if it is not.
        sources: The stored tensors of each parameter of `model`.
        unused: Tensors of the text decoder that no parameter takes, as transformers leaves them.
    """

    files: Files
    config: ModelConfig
    dtype: torch.dtype
    model: Any
    decoder_path: str
    blocks_path: str
    dequantizer: Dequantizer | None
    shard_of: Mapping[str, str]
    sources: Mapping[str, Source]
    unused: tuple[str, ...]

    @classmethod
    def open(
        cls, files: Files, dtype: torch.dtype, config: ModelConfig | None = None
    ) -> "Contents":
        """Read config and index; raise SourceError for an architecture that cannot be used."""
        config = config or read_config(files)
        _refuse_adapter(files)
        model = stock_model(config, dtype)
        decoder = decoder_of(model)
        check_decoder(decoder, config.text)
        decoder_path = path_of(decoder, model)
        blocks_path, _ = blocks_of(decoder, config.text)
        dequantizer = find_dequantizer(files, config, model, dtype)
        reader = _open_reader(files, dequantizer)
        quantizer = dequantizer.quantizer if dequantizer is not None else None
        sources, unmatched = assign_tensors(model, reader.shard_of, quantizer)
        contents = cls(
            files=files,
            config=config,
            dtype=dtype,
            model=model,
            decoder_path=_joined(decoder_path),
            blocks_path=_joined(decoder_path) + _joined(blocks_path),
            dequantizer=dequantizer,
            shard_of=reader.shard_of,
            sources=sources,
            unused=(),
        )
        unused = [name for name, new_name in unmatched.items() if contents._is_text(new_name)]
        if dequantizer is None:
            _refuse_scales(files, unused)
        return replace(contents, unused=tuple(unused))

    def again(self) -> "Contents":
        """Return the same contents with another, untouched model."""
        return replace(self, model=stock_model(self.config, self.dtype))

    @property
    def text_decoder(self) -> nn.Module:
        """The text decoder of `model`."""
        return decoder_of(self.model)

    @cached_property
    def _module_names(self) -> set[str]:
        return {name for name, _ in self.model.named_modules() if name}

    @cached_property
    def head_name(self) -> str:
        """The lm_head's weight."""
        return f"{head_path(self.model)}.weight"

    @cached_property
    def embedding_name(self) -> str:
        """The token embedding's weight."""
        return f"{path_of(self.model.get_input_embeddings(), self.model)}.weight"

    @cached_property
    def tied(self) -> bool:
        """Whether the lm_head uses the embedding's weight, by transformers' rule.

        A config that says so is a wish: if the checkpoint stores both with different values, they
        are not tied.
        """
        if self.embedding_name not in self._partners(self.head_name):
            return False
        head, embedding = self.sources.get(self.head_name), self.sources.get(self.embedding_name)
        if head is None or embedding is None:
            return True
        reader = self.reader()
        return _equal(reader.read(head.names[0]), reader.read(embedding.names[0]))

    def reader(self) -> TensorReader | GgufReader:
        """Return what reads stored tensors."""
        return _open_reader(self.files, self.dequantizer)

    def source(self, name: str) -> Source | None:
        """Return the source of a parameter, or that of a parameter it is tied to; None if unknown.

        transformers ties in both directions: a checkpoint may hold only the lm_head.
        """
        for candidate in (name, *self._partners(name)):
            if candidate in self.sources:
                return self.sources[candidate]
        return None

    def stored(self, name: str) -> tuple[str, ...]:
        """Return the stored tensors of a parameter; none if it has none."""
        source = self.source(name)
        return source.names if source is not None else ()

    def require(self, names: Iterable[str]) -> dict[str, Source]:
        """Return the source of every parameter; raise SourceError if one is missing."""
        found = {name: self.source(name) for name in names}
        missing = [name for name, source in found.items() if source is None]
        shapes = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        for name, source in found.items():
            if source is not None and source.is_stack:
                missing += source.missing_from_stack(shapes[name][0])
        if missing:
            raise SourceError(
                f"{self.files.name} has no tensor {missing[0]} ({len(missing)} missing): "
                f"not the weights of its config ({self.config.text.model_type})"
            )
        return {name: source for name, source in found.items() if source is not None}

    def warn(self) -> None:
        """Warn of stored tensors of the text decoder that are not used."""
        if not self.unused:
            return
        shown = ", ".join(self.unused[:_NAMED_UNUSED])
        more = len(self.unused) - _NAMED_UNUSED
        rest = f" and {more} more" if more > 0 else ""
        message = (
            f"{self.files.name}: its config does not know {shown}{rest}; transformers leaves such "
            "tensors out, and so does saescope: check config.json"
        )
        warnings.warn(message, CheckpointWarning, stacklevel=3)

    def _partners(self, name: str) -> list[str]:
        """Parameters that share their values with this one, if the config's wish is granted."""
        ties: Mapping[str, str] = self.model.all_tied_weights_keys
        origin = ties.get(name, name)
        group = [origin, *(target for target, source in ties.items() if source == origin)]
        return [partner for partner in group if partner != name]

    def _is_text(self, name: str) -> bool:
        """Whether a name belongs to a block of this decoder, to a module beside them or the head.

        Layers beyond the last one, such as a draft head's, belong to another model.
        """
        if not name.startswith(self.blocks_path):
            owner = name.rpartition(".")[0]
            is_module = owner in dict(self.model.named_modules()) and owner != ""
            return is_module and (
                name.startswith(self.decoder_path) or owner == self.head_name[:-7]
            )
        layer = name.removeprefix(self.blocks_path).partition(".")[0]
        return layer.isdigit() and int(layer) < self.config.text.num_hidden_layers


def _open_reader(files: Files, dequantizer: Dequantizer | None) -> TensorReader | GgufReader:
    if dequantizer is not None and dequantizer.stored is not None:
        return GgufReader(files, str(gguf_name(files)), dequantizer.stored)
    shard_of, _ = read_index(files)
    return TensorReader(files, shard_of)


def _joined(path: str) -> str:
    return f"{path}." if path else ""


def _refuse_adapter(files: Files) -> None:
    if "adapter_config.json" in files.names():
        raise SourceError(
            f"{files.name} holds a LoRA adapter (adapter_config.json), which transformers would "
            "apply to the model: merge it into the weights, or take it out of the folder"
        )


def _refuse_scales(files: Files, unused: Iterable[str]) -> None:
    scales = [name for name in unused if name.endswith(_SCALES)]
    if scales:
        raise SourceError(
            f"{files.name} is quantised (it stores {scales[0]}), but its config does not say how: "
            "use the model it was made from"
        )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Compare two stored tensors in pieces, so that neither is ever held whole."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    rows = max(1, 2**24 // max(1, one[0].numel()))
    pieces = zip(one.split(rows), other.split(rows), strict=True)
    return all(torch.equal(a, b) for a, b in pieces)
