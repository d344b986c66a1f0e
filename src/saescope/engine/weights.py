"""Put a checkpoint's tensors into a module without weights, reading only the shards it needs.

A tensor that is stored in the requested dtype stays a view of its file. Others are copies, and so
are experts that the checkpoint holds one by one: each parameter is copied straight to its place,
and the pages it was read from are released at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Size, Tensor, nn

from saescope.engine.names import Source, sources
from saescope.engine.pages import mapped_pages, release_pages
from saescope.errors import SourceError, first_line
from saescope.sources.checkpoint import read_index
from saescope.sources.files import Files

# Reads the next block while one computes; a single thread, so that no more than one is ever ahead.
_READER = ThreadPoolExecutor(1, "weights")


@final
class Weights:
    """The parameters of a module and where each comes from: filled at once, or block by block."""

    def __init__(
        self,
        model: nn.Module,
        files: Files,
        shard_of: Mapping[str, str],
        found: Mapping[str, Source],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._model = model
        self._found = found
        self._shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        self._dtype, self._device = dtype, device
        self._stack = ExitStack()
        self._checkpoint = _Checkpoint(files, shard_of, self._stack, {})
        self._ahead: tuple[str, Future[dict[str, Tensor]]] | None = None

    @classmethod
    def open(
        cls, model: nn.Module, files: Files, dtype: torch.dtype, device: torch.device
    ) -> "Weights":
        """Find every parameter's tensor in the checkpoint; raises SourceError if one is missing."""
        shard_of, _ = read_index(files)
        kind = str(getattr(model.config, "model_type", type(model).__name__))
        wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
        found = sources(wanted, shard_of, usual=f"{model.base_model_prefix}.")
        _refuse_missing(files, found, shard_of, kind)
        _fill_buffers(model, kind)
        return cls(model, files, shard_of, found, dtype, device)

    @property
    def names(self) -> list[str]:
        """All parameters."""
        return list(self._found)

    @property
    def shards(self) -> list[str]:
        """Files of the checkpoint that hold them."""
        names = [name for source in self._found.values() for name in source.flat]
        return sorted({self._checkpoint.shard_of[name] for name in names})

    def fill(self, names: Sequence[str]) -> None:
        """Give parameters their tensors; raises SourceError for damage or another shape."""
        self._model.load_state_dict(self._read(names), assign=True, strict=False)
        for (
            module
        ) in self._model.modules():  # buffers follow; blocks that have no weights yet stay without
            module._buffers.update(
                {n: b.to(self._device) for n, b in module._buffers.items() if b is not None}
            )

    def close(self) -> None:
        """Nothing more will be read; what is mapped stays so."""
        self._stack.close()

    @contextmanager
    def lent(self, part: nn.Module, prefix: str, following: str | None) -> Iterator[None]:
        """Within the context, `part` of the module, under `prefix`, has its tensors.

        Meanwhile those under `following` are being read.
        """
        if self._ahead is not None and self._ahead[0] == prefix:
            state = self._ahead[1].result()
        else:
            state = self._read(self._under(prefix))
        self._ahead = None
        if following is not None:
            self._ahead = following, _READER.submit(self._read, self._under(following))
        empty = {
            n: torch.empty(t.shape, dtype=t.dtype, device="meta")
            for n, t in part.state_dict().items()
        }
        part.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in state.items()}, assign=True
        )
        try:
            yield
        finally:
            release_pages(mapped_pages(state.values()))
            part.load_state_dict(empty, assign=True)

    def _under(self, prefix: str) -> list[str]:
        return [name for name in self._found if name.startswith(prefix)]

    def _read(self, names: Sequence[str]) -> dict[str, Tensor]:
        read = self._checkpoint.read
        return {
            name: read(self._found[name], self._shapes[name], self._dtype, self._device)
            for name in names
        }


def read_tensors(
    files: Files, wanted: Mapping[str, Size], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Some tensors of a checkpoint by a module's names; raises SourceError as `Weights` does."""
    shard_of, _ = read_index(files)
    found = sources(wanted, shard_of, usual="")
    _refuse_missing(files, found, shard_of, "lm_head")
    with ExitStack() as stack:
        checkpoint = _Checkpoint(files, shard_of, stack, {})
        return {
            name: checkpoint.read(source, wanted[name], dtype, device)
            for name, source in found.items()
        }


def _refuse_missing(
    files: Files, found: Mapping[str, Source], stored: Mapping[str, str], kind: str
) -> None:
    missing = [name for source in found.values() for name in source.flat if name not in stored]
    if missing:
        raise SourceError(
            f"{files.name} has no tensor {missing[0]} ({len(missing)} missing): "
            f"not the weights of its config ({kind})"
        )


@final
@dataclass(frozen=True)
class _Checkpoint:
    """Tensors by name; a shard is opened when one of its tensors is first asked for."""

    files: Files
    shard_of: Mapping[str, str]
    stack: ExitStack
    opened: dict[str, Any]

    def read(self, source: Source, shape: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The parameter of this shape, assembled if its experts are stored one by one."""
        stored = [self._stored(name) for name in source.flat]
        part = Size((shape[1] // len(source.names[0]), shape[2])) if source.stacked else shape
        for name, tensor in zip(source.flat, stored, strict=True):
            if tensor.shape != part:
                raise SourceError(
                    f"{self.files.name}: {name} has shape {tuple(tensor.shape)}, "
                    f"its config says {tuple(part)}"
                )
        if source.stacked:
            filled = torch.empty(shape, dtype=dtype, device=device)
            for place, tensor in zip(filled.view(-1, *part), stored, strict=True):
                place.copy_(tensor)
        else:
            filled = stored[0].to(device=device, dtype=dtype)
        if filled is not stored[0]:
            release_pages(mapped_pages(stored))
        return filled

    def _stored(self, name: str) -> Tensor:
        shard = self.shard_of[name]
        if shard not in self.opened:
            self.opened[shard] = self.stack.enter_context(_open_shard(self.files.path(shard)))
        try:
            tensor: Tensor = self.opened[shard].get_tensor(name)
        except SafetensorError as error:
            raise SourceError(
                f"{shard} does not give tensor {name}: {first_line(error)}"
            ) from error
        return tensor


def _fill_buffers(model: nn.Module, kind: str) -> None:
    """Compute buffers that checkpoints do not hold by the architecture's own rule.

    Parameters stay without memory meanwhile: the rule would draw random numbers for them.
    """
    for module in model.modules():
        names = [
            name for name in module._non_persistent_buffers_set if module._buffers[name] is not None
        ]
        if not names:
            continue
        first, second = (_computed(model, module, names, begin) for begin in (0, 1))
        for name in names:
            if not torch.equal(
                first[name], second[name]
            ):  # what it held before, so the rule left it alone
                raise SourceError(
                    f"architecture {kind!r} is not supported: "
                    f"it does not say how the buffer {name} "
                    f"of its {type(module).__name__} is computed"
                )


def _computed(
    model: nn.Module, module: nn.Module, names: list[str], begin: int
) -> dict[str, Tensor]:
    for name in names:
        module._buffers[name] = torch.full_like(module.get_buffer(name), begin, device="cpu")
    model._init_weights(module)  # type: ignore[operator]
    return {name: module.get_buffer(name).clone() for name in names}


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path} is damaged or truncated: {first_line(error)}") from error
