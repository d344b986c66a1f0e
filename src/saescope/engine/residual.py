"""Capture of the residual stream at hook points: the only file that registers hooks.

`resid_post` of layer L is the output of block L. Hidden states that transformers returns would be something else for
the last layer (taken after the final norm), so hooks it is.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from saescope.engine.lm import LM
from saescope.engine.pages import Pages, give_back


@contextmanager
def capture(lm: LM, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Within the block, each forward pass puts every layer's output (batch, pos, d_model) into the yielded dict.

    Weights mapped from files are given back block by block, so that a pass never holds more than one block of them.
    """
    resid: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in layers:
            handle = lm.blocks[layer].register_forward_hook(partial(_keep, resid, layer))
            stack.callback(handle.remove)
        for block, pages in zip(lm.blocks, lm.mapped, strict=True):
            if pages:
                stack.callback(block.register_forward_hook(partial(_give_back, pages)).remove)
        yield resid


def _keep(resid: dict[int, Tensor], layer: int, _block: nn.Module, _inputs: Any, output: Any) -> None:
    resid[layer] = output[0] if isinstance(output, tuple) else output  # a tuple before transformers 5


def _give_back(pages: list[Pages], _block: nn.Module, _inputs: Any, _output: Any) -> None:
    give_back(pages)
