"""Run one decoder block at a time over all batches, so only one block's weights are in memory.

The model's own forward pass runs the active block; the other blocks are replaced by pass-through
placeholders. So transformers itself computes masks, positions and all other block arguments, and
results equal those of a plain pass bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saescope.engine.batches import TokenBatch
from saescope.engine.lm import LM, SkippedNorm
from saescope.engine.matmul_kernels import NATIVE, KernelMode
from saescope.engine.pages import Pages, pages_of_file, release_heap, release_pages
from saescope.errors import SourceError


@dataclass(frozen=True)
class BlockOutput:
    """The residual of one batch after one layer's block, padding included."""

    batch: int
    layer: int
    resid: Float[Tensor, "batch pos d_model"]


def stream_blocks(
    lm: LM,
    layers: Sequence[int],
    batches: Sequence[TokenBatch],
    folder: Path | None = None,
    mode: KernelMode | None = None,
) -> Iterator[BlockOutput]:
    """Yield the outputs of all batches at these layers, layer by layer.

    `folder`: where to keep the residuals of all batches between blocks (None: in memory). `mode`:
    matmul kernels for linear layers. Raises SourceError if the architecture changes the residual
    between its blocks.
    """
    mode = mode or KernelMode(NATIVE)
    _refuse_shared_values(lm, max(layers))
    with torch.inference_mode(), _placeholders(lm) as active:
        _refuse_unstreamable(lm, active, batches[0])
        residuals = _ResidualStore(folder)
        for layer in range(max(layers) + 1):
            active.layer = layer
            with lm.block_in_memory(layer, active.blocks[layer]):
                for batch_index, tokens in enumerate(batches):
                    active.resid = residuals.get(batch_index)
                    with mode:
                        output = _run_active_block(lm, tokens, active.resid)
                    if layer == 0:
                        release_pages(lm.embedding_pages)
                    residuals.put(batch_index, output)
                    if layer in layers:
                        yield BlockOutput(batch_index, layer, output)
            release_heap()


def run_block(
    lm: LM,
    layer: int,
    resids: Sequence[Float[Tensor, "batch pos d_model"]],
    modify_weights: Callable[[nn.Module], None] = lambda _block: None,
) -> list[Tensor]:
    """Return one block's outputs; `modify_weights` may change its weights for this call."""
    _refuse_shared_values(lm, layer)
    outputs = []
    with torch.inference_mode(), _placeholders(lm) as active:
        block = active.blocks[layer]
        active.layer = layer
        with lm.block_in_memory(layer, block, read_ahead=False):
            modify_weights(block)
            for resid in resids:
                active.resid = resid
                ids = torch.zeros(resid.shape[:2], dtype=torch.int64, device=lm.device)
                tokens = TokenBatch(ids, mask=ids == 0, positions=None)
                outputs.append(_run_active_block(lm, tokens, resid))
    return outputs


def first_block_input(lm: LM, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
    """Return what the first block reads for these token ids: the embedding as it enters."""
    tokens = TokenBatch(ids, mask=torch.ones_like(ids, dtype=torch.bool), positions=None)
    with torch.inference_mode(), _placeholders(lm) as active:
        active.layer = 0
        object.__setattr__(lm.blocks[0], "forward", _finish)
        return _run_active_block(lm, tokens, None)


def _finish(resid: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    raise _BlockFinished(resid)


class _ActiveBlock:
    """The layer whose block runs, and its input; None: the input that the model passes.

    `in_tuple`: whether the model takes the residual out of a tuple that its blocks return.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = blocks
        self.layer = -1
        self.resid: Tensor | None = None
        self.in_tuple = False


class _Placeholder(nn.Module):
    """Passes the residual on; at the active layer it runs the real block and stops the pass."""

    def __init__(self, block: nn.Module, layer: int, active: _ActiveBlock) -> None:
        super().__init__()
        # Not a submodule: it must not move or be counted with the model.
        object.__setattr__(self, "block", block)
        self.layer = layer
        self.active = active

    def __getattr__(
        self, name: str
    ) -> Any:  # models read attributes of their blocks, such as the attention type
        return getattr(object.__getattribute__(self, "block"), name)

    def forward(self, resid: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        if self.layer != self.active.layer:
            return (resid,) if self.active.in_tuple else resid
        if self.active.resid is not None:
            resid = self.active.resid
        output = self.block(resid, *args, **kwargs)
        raise _BlockFinished(output[0] if isinstance(output, tuple) else output)


class _BlockFinished(Exception):
    """Ends a forward pass after the active block; carries its output."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


@contextmanager
def _placeholders(lm: LM) -> Iterator[_ActiveBlock]:
    blocks = list(lm.blocks)
    active = _ActiveBlock(blocks)
    try:
        for layer, block in enumerate(blocks):
            lm.blocks[layer] = _Placeholder(block, layer, active)
        yield active
    finally:
        for layer, block in enumerate(blocks):
            lm.blocks[layer] = block


def _run_active_block(lm: LM, tokens: TokenBatch, resid: Tensor | None) -> Tensor:
    """Return the active block's output.

    Only layer 0 looks up the embedding, unless blocks read the ids as well (Gemma's inputs per
    layer): the placeholder gives the block its residual either way.
    """
    reads_ids = resid is None or bool(getattr(lm.model.config, "hidden_size_per_layer_input", 0))
    inputs = {"input_ids": tokens.ids} if reads_ids else {"inputs_embeds": resid}
    try:
        lm.model(**inputs, position_ids=tokens.positions, use_cache=False)
    except _BlockFinished as finished:
        if finished.output.ndim != 3:
            raise SourceError(
                f"{lm.spec.repo} cannot be streamed: its blocks give "
                f"{tuple(finished.output.shape)}, not (batch, position, width)"
            ) from None
        return finished.output
    raise SourceError(
        f"{lm.spec.repo} cannot be streamed: its forward pass does not run every block"
    )


def _refuse_unstreamable(lm: LM, active: _ActiveBlock, tokens: TokenBatch) -> None:
    """Raise SourceError unless each block needs the residual before it and nothing else.

    Checked with pass-through blocks. Older architectures' blocks return tuples (Falcon): try both.
    """
    config: Any = lm.model.config
    if getattr(config, "num_kv_shared_layers", None):
        raise SourceError(
            f"{lm.spec.repo} cannot be streamed: its last layers read keys and values of others"
        )
    for active.in_tuple in (False, True):
        if _keeps_residual(lm, active, tokens):
            return
    raise SourceError(
        f"{lm.spec.repo} cannot be streamed: it changes the residual between its blocks"
    )


def _keeps_residual(lm: LM, active: _ActiveBlock, tokens: TokenBatch) -> bool:
    """Whether all pass-through blocks see the same residual."""
    inputs: list[Tensor] = []
    norms = [module for module in lm.model.children() if isinstance(module, SkippedNorm)]
    for norm in norms:
        norm.uses = 0

    def keep_input(resid: Tensor, *_args: Any, **_kwargs: Any) -> Tensor | tuple[Tensor]:
        if any(norm.uses for norm in norms):
            raise SourceError(
                f"{lm.spec.repo} cannot be streamed: its final norm also runs before layer 0"
            )
        inputs.append(resid)
        return (resid,) if active.in_tuple else resid

    for block in lm.blocks:
        object.__setattr__(block, "forward", keep_input)
    try:
        lm.model(input_ids=tokens.ids[:1, :2], use_cache=False)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False  # the model cannot use what the blocks returned
    finally:
        for block in lm.blocks:
            object.__delattr__(block, "forward")
    if len(inputs) != len(lm.blocks):
        return False
    return all(torch.equal(inputs[0], resid) for resid in inputs[1:])


def _refuse_shared_values(lm: LM, last: int) -> None:
    """Raise SourceError if blocks up to `last` need what other blocks computed (Gemma 4)."""
    n_shared = int(getattr(lm.model.config, "num_kv_shared_layers", 0) or 0)
    if n_shared and last >= lm.spec.n_layers - n_shared:
        raise SourceError(
            f"{lm.spec.repo} cannot run block by block, as streaming and baking need: its last "
            f"{n_shared} layers reuse keys and values of earlier ones. Run it whole, or steer it"
        )


class _ResidualStore:
    """Each batch's residual between two blocks, in memory or in mapped files."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._resids: dict[int, Tensor] = {}
        self._pages: dict[int, list[Pages]] = {}

    def get(self, batch_index: int) -> Tensor | None:
        return self._resids.get(batch_index)

    def put(self, batch_index: int, resid: Tensor) -> None:
        if self._folder is None:
            self._resids[batch_index] = resid
            return
        if batch_index not in self._resids:
            path = self._folder / f"resid-{batch_index:06d}"
            mapped = torch.from_file(str(path), shared=True, size=resid.numel(), dtype=resid.dtype)
            self._resids[batch_index] = mapped.view(resid.shape)
            self._pages[batch_index] = pages_of_file(mapped)
        self._resids[batch_index].copy_(resid)
        release_pages(self._pages[batch_index])
