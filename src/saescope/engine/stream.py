"""One decoder block at a time over all batches, so that no more than a block of weights is ever needed at once.

Every block is called by the model's own forward pass, in which all other blocks are stand-ins that pass their input on:
masks, positions and whatever an architecture gives its blocks are made by transformers itself, and the arithmetic is
that of a plain pass, bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saescope.engine.batches import TokenBatch
from saescope.engine.lm import LM
from saescope.engine.matmul_kernels import NATIVE, KernelMode
from saescope.engine.pages import Pages, pages_of_file, release_pages
from saescope.errors import SourceError


class _Reached(Exception):
    """The wanted block was run; carries its output."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


class _StandIn(nn.Module):
    """Passes the residual on; at the wanted layer runs the real block on the residual that is kept for it."""

    def __init__(self, block: nn.Module, layer: int, turn: "_Turn") -> None:
        super().__init__()
        object.__setattr__(
            self, "block", block
        )  # no submodule: it must not move or be counted with the model
        self.layer = layer
        self.turn = turn

    def __getattr__(self, name: str) -> Any:  # models ask their blocks what kind they are
        return getattr(object.__getattribute__(self, "block"), name)

    def forward(self, resid: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.layer != self.turn.layer:
            return resid
        kept = self.turn.resid
        output = self.block(resid if kept is None else kept, *args, **kwargs)
        raise _Reached(output[0] if isinstance(output, tuple) else output)


class _Turn:
    """Which block's turn it is, and the residual it is given; None is the model's own, at the first block."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = blocks
        self.layer = -1
        self.resid: Tensor | None = None


@contextmanager
def _standing_in(lm: LM) -> Iterator[_Turn]:
    blocks = list(lm.blocks)
    turn = _Turn(blocks)
    try:
        for layer, block in enumerate(blocks):
            lm.blocks[layer] = _StandIn(block, layer, turn)
        yield turn
    finally:
        for layer, block in enumerate(blocks):
            lm.blocks[layer] = block


def streamed(
    lm: LM,
    layers: Sequence[int],
    batches: Sequence[TokenBatch],
    folder: Path | None = None,
    products: KernelMode | None = None,
) -> Iterator[tuple[int, int, Tensor]]:
    """(layer, batch, residual) for every wanted layer and batch, layer by layer; residuals are (batch, pos, d_model).

    Residuals of all batches are kept between blocks: in memory, or in files of `folder`. Linear layers are computed by
    `products`. Raises SourceError where the architecture does something between its blocks.
    """
    products = products or KernelMode(NATIVE)
    with torch.inference_mode(), _standing_in(lm) as turn:
        _refuse_detours(lm, batches[0])
        kept = _Kept(folder)
        for layer in range(max(layers) + 1):
            turn.layer = layer
            with lm.block_in_memory(layer, turn.blocks[layer]):
                for number, tokens in enumerate(batches):
                    turn.resid = kept.get(number)
                    with products:
                        output = _run(lm, tokens, turn.resid)
                    release_pages([] if layer else lm.embedding_pages)
                    kept.put(number, output)
                    if layer in layers:
                        yield layer, number, output


def run_alone(
    lm: LM,
    layer: int,
    resids: Sequence[Tensor],
    alter: Callable[[nn.Module], None] = lambda _block: None,
) -> list[Tensor]:
    """What one block of a streamed LM makes of these residuals (batch, pos, d_model), its weights changed by `alter`.

    Nothing of the change stays.
    """
    outputs = []
    with (
        torch.inference_mode(),
        _standing_in(lm) as turn,
        lm.block_in_memory(layer, turn.blocks[layer], read_ahead=False),
    ):
        alter(turn.blocks[layer])
        turn.layer = layer
        for resid in resids:
            turn.resid = resid
            ids = torch.zeros(resid.shape[:2], dtype=torch.int64, device=lm.device)
            outputs.append(_run(lm, TokenBatch(ids, ids == 0, None), resid))
    return outputs


def _run(lm: LM, tokens: TokenBatch, resid: Tensor | None) -> Tensor:
    """The output of the block whose turn it is; after the first, the embedding is not looked up again."""
    given = {"input_ids": tokens.ids} if resid is None else {"inputs_embeds": resid}
    try:
        lm.model(**given, position_ids=tokens.positions, use_cache=False)
    except _Reached as reached:
        return reached.output
    raise SourceError(
        f"{lm.spec.repo} has a block that its own forward pass never runs: it cannot be streamed"
    )


def _refuse_detours(lm: LM, tokens: TokenBatch) -> None:
    """With every block passing its input on, the model must give back what went into the first block."""
    first: list[Tensor] = []
    stand_in = lm.blocks[0]

    def keep(resid: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        first.append(resid)
        return resid

    object.__setattr__(stand_in, "forward", keep)
    try:
        output = lm.model(input_ids=tokens.ids[:1, :2], use_cache=False).last_hidden_state
    finally:
        object.__delattr__(stand_in, "forward")
    if len(first) != 1 or not torch.equal(first[0], output):
        raise SourceError(
            f"{lm.spec.repo}: the model changes the residual between or after its blocks: it cannot be streamed"
        )


class _Kept:
    """The residual of every batch between two blocks, in memory or in files mapped into it."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._resids: dict[int, Tensor] = {}
        self._pages: dict[int, list[Pages]] = {}

    def get(self, number: int) -> Tensor | None:
        return self._resids.get(number)

    def put(self, number: int, resid: Tensor) -> None:
        if self._folder is None:
            self._resids[number] = resid
            return
        if number not in self._resids:
            path = self._folder / f"resid-{number:06d}"
            mapped = torch.from_file(str(path), shared=True, size=resid.numel(), dtype=resid.dtype)
            self._resids[number] = mapped.view(resid.shape)
            self._pages[number] = pages_of_file(mapped)
        self._resids[number].copy_(resid)
        release_pages(self._pages[number])
