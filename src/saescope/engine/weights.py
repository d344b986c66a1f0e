"""Put a checkpoint's tensors into a module without weights, reading only the shards it needs.

A tensor that is stored in the requested dtype stays a view of its file. Others are copies, and so
are experts that the checkpoint holds one by one: each parameter is copied straight to its place,
and the pages it was read from are released at once.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Size, Tensor, nn

from saescope.engine.contents import Contents
from saescope.engine.names import Source
from saescope.engine.pages import mapped_pages, release_pages
from saescope.errors import SourceError
from saescope.sources.machine import show_bytes

# Of what a model computes from its config instead of reading it, such as masks of old models.
_MOST_BUFFER_BYTES = 2**29
# Reads the next block while one computes; a single thread, so that no more than one is ever ahead.
_READER = ThreadPoolExecutor(1, "weights")


@final
class Weights:
    """The parameters of a part of a model and where each comes from.

    They are filled at once, or block by block. Names are those of the part.
    """

    def __init__(
        self, contents: Contents, part: nn.Module, path: str, device: torch.device
    ) -> None:
        """Find every parameter's tensors; raise SourceError if one is missing.

        `part` is a module without weights that stands at `path` (empty, or with a dot at its end)
        in the contents' model.
        """
        self._part, self._path, self._device = part, path, device
        self._model = contents.model
        wanted = _given_parameters(contents, part, path)
        self._expected = {name: part.state_dict()[name] for name in wanted}
        found = contents.require(path + name for name in wanted)
        self._sources = {name: found[path + name] for name in wanted}
        self._dtypes = parameter_dtypes(contents, path, self._expected)
        self._reader = contents.reader()
        self._ahead: tuple[str, Future[dict[str, Tensor]]] | None = None
        _compute_buffers(contents.model, part, set(wanted))

    @property
    def names(self) -> list[str]:
        """All parameters."""
        return list(self._sources)

    @property
    def shards(self) -> list[str]:
        """Files of the checkpoint that hold them."""
        names = [name for source in self._sources.values() for name in source.names]
        return sorted({self._reader.shard_of[name] for name in names})

    def fill(self, names: Sequence[str]) -> None:
        """Give parameters their tensors; raises SourceError for damage or another shape."""
        self._part.load_state_dict(self._read(names), assign=True, strict=False)
        for module in self._part.modules():
            for name, buffer in module._buffers.items():
                # Blocks that have no weights yet stay without.
                if buffer is not None and not buffer.is_meta:
                    module._buffers[name] = buffer.to(self._device)

    def close(self) -> None:
        """Nothing more will be read; what is mapped stays so."""
        self._reader.close()

    @contextmanager
    def lent(self, block: nn.Module, prefix: str, following: str | None) -> Iterator[None]:
        """Within the context, a block of the part, under `prefix`, has its tensors.

        Meanwhile those under `following` are being read.
        """
        if self._ahead is not None and self._ahead[0] == prefix:
            state = self._ahead[1].result()
        else:
            state = self._read(self._under(prefix))
        self._ahead = None
        if following is not None:
            self._ahead = following, _READER.submit(self._read, self._under(following))
        given = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        empty = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            for name, tensor in block.state_dict().items()
            if name in given
        }
        block.load_state_dict(given, assign=True, strict=False)
        try:
            yield
        finally:
            release_pages(mapped_pages(state.values()))
            block.load_state_dict(empty, assign=True, strict=False)

    def _under(self, prefix: str) -> list[str]:
        return [name for name in self._sources if name.startswith(prefix)]

    def _read(self, names: Sequence[str]) -> dict[str, Tensor]:
        converted: dict[str, dict[str, Tensor]] = {}
        tensors = {}
        for name in names:
            source = self._sources[name]
            if source.converter is None:
                tensors[name] = self._read_as_stored(name, source)
            elif source.is_stack:
                tensors[name] = self._read_stack(name, source)
            else:
                if source.first not in converted:
                    converted = {source.first: self._convert(source)}
                tensors[name] = self._pick(name, converted[source.first])
        return tensors

    def _read_as_stored(self, name: str, source: Source) -> Tensor:
        stored = self._reader.read(source.names[0])
        self._refuse_unfitting(source.names[0], stored, self._expected[name].shape)
        filled = stored.to(device=self._device, dtype=self._dtypes[name])
        if filled is not stored:
            release_pages(mapped_pages([stored]))
        return filled

    def _read_stack(self, name: str, source: Source) -> Tensor:
        """Copy experts, stored one by one, straight to their places in the parameter."""
        shape = self._expected[name].shape
        n_parts = len(source.converter.source_patterns)
        part_shape = Size((shape[1] // n_parts, shape[2]))
        filled = torch.empty(shape, dtype=self._dtypes[name], device=self._device)
        places = filled.view(-1, *part_shape)
        for place, stored_name in zip(places, source.stack_order(), strict=True):
            stored = self._reader.read(stored_name)
            self._refuse_unfitting(stored_name, stored, part_shape)
            place.copy_(stored)
            release_pages(mapped_pages([stored]))
        return filled

    def _convert(self, source: Source) -> dict[str, Tensor]:
        stored = {name: self._reader.read(name) for name in source.names}
        return source.convert(stored, self._model)

    def _pick(self, name: str, converted: Mapping[str, Tensor]) -> Tensor:
        tensor = converted.get(self._path + name)
        if tensor is None:
            raise SourceError(
                f"{self._reader.files.name}: its tensors give no {self._path + name}: "
                "not the weights of its config"
            )
        self._refuse_unfitting(name, tensor, self._expected[name].shape)
        # A copy of its own: a converted tensor may be a view of a file or of another parameter.
        return tensor.to(device=self._device, dtype=self._dtypes[name], copy=True)

    def _refuse_unfitting(self, name: str, tensor: Tensor, shape: Size) -> None:
        if tensor.shape != shape:
            raise SourceError(
                f"{self._reader.files.name}: {name} has shape {tuple(tensor.shape)}, "
                f"its config says {tuple(shape)}"
            )
        is_number = tensor.is_floating_point() and tensor.element_size() > 1
        if not is_number and self._is_weight(name):
            raise SourceError(
                f"{self._reader.files.name}: {name} is stored as {_dtype_name(tensor.dtype)}, "
                "which needs scales: use the model it was quantised from"
            )

    def _is_weight(self, name: str) -> bool:
        """Whether a tensor fills a parameter of floats, not a buffer of integers."""
        fills = [own for own, source in self._sources.items() if name in (own, *source.names)]
        return any(self._expected[own].is_floating_point() for own in fills)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _given_parameters(contents: Contents, part: nn.Module, path: str) -> list[str]:
    """Return the parameters that the checkpoint must hold.

    A buffer that it lacks is computed by the architecture, as transformers does.
    """
    buffers = {name for name, _ in part.named_buffers()}
    names = part.state_dict().keys()
    return [name for name in names if name not in buffers or contents.source(path + name)]


def parameter_dtypes(
    contents: Contents, path: str, expected: Mapping[str, Tensor]
) -> dict[str, torch.dtype]:
    """Return each parameter's dtype: some architectures keep a few in float32."""
    kept: Mapping[str, torch.dtype] = contents.model._get_dtype_plan(contents.dtype)
    patterns = [(re.compile(glob.replace("*", ".*")), other) for glob, other in kept.items()]
    dtypes = {}
    for name, tensor in expected.items():
        planned = (other for pattern, other in patterns if pattern.search(path + name))
        dtypes[name] = next(planned, tensor.dtype)
    return dtypes


def _compute_buffers(model: Any, part: nn.Module, stored: set[str]) -> None:
    """Compute buffers that the checkpoint does not hold by the architecture's own rule.

    Parameters stay without memory meanwhile: the rule would draw random numbers for them.
    """
    _refuse_large_buffers(model, part, stored)
    initialise = getattr(part, "_init_weights", model._init_weights)
    for owner, module in part.named_modules():
        prefix = f"{owner}." if owner else ""
        names = [
            name
            for name, buffer in module._buffers.items()
            if buffer is not None and prefix + name not in stored
        ]
        if not names:
            continue
        first, second = (_computed(initialise, module, names, begin) for begin in (0, 1))
        for name in names:
            # A value that is still what it was before the rule: the rule left it alone.
            if not torch.equal(first[name], second[name]):
                raise SourceError(
                    f"architecture {model.config.model_type!r} is not supported: "
                    f"it does not say how the buffer {name} "
                    f"of its {type(module).__name__} is computed"
                )


def _refuse_large_buffers(model: Any, part: nn.Module, stored: set[str]) -> None:
    buffers = [buffer for name, buffer in part.named_buffers() if name not in stored]
    n_bytes = sum(buffer.numel() * buffer.element_size() for buffer in buffers)
    if n_bytes > _MOST_BUFFER_BYTES:
        raise SourceError(
            f"the config of this {model.config.model_type} asks for tables of "
            f"{show_bytes(n_bytes)} that no file holds: more than {show_bytes(_MOST_BUFFER_BYTES)} "
            "is refused"
        )


def _computed(
    initialise: Callable[[nn.Module], None], module: nn.Module, names: list[str], begin: int
) -> dict[str, Tensor]:
    for name in names:
        module._buffers[name] = torch.full_like(module.get_buffer(name), begin, device="cpu")
    initialise(module)
    return {name: module.get_buffer(name).clone() for name in names}
