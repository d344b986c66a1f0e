"""The k largest values of every row, exactly, of a product that is never held whole.

Of equal values the one with the smaller index counts as larger, so the answer does not depend on
blocks or kernels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saescope.engine.encoder_matmul import encoder_matmul, float32_matmul
from saescope.engine.pages import Pages, release_pages, within
from saescope.sources.budget import ENCODE_BLOCK

# Only groups whose largest value is among the k largest of all groups can matter.
_GROUP = 32
_MIN_COLUMNS = 8192
_MAX_ROWS = 1024
# Columns multiplied at a time: their memory is reused, and stays in the processor's caches.
_MATMUL_COLUMNS = 2048
_TIED_ROWS = 64


class Top(NamedTuple):
    """The largest values of every row, in descending order, and their columns."""

    values: Float[Tensor, "n k"]
    ids: Int[Tensor, "n k"]


def largest_products(
    x: Float[Tensor, "n d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, "d_out"],
    k: int,
    mapped: tuple[Pages, ...] = (),
) -> Top:
    """Return the k largest of x · weightᵀ + bias in every row, in float32.

    Holds ENCODE_BLOCK bytes of the product at once. Pages of the weight that are `mapped` from a
    file are released as soon as they are used.
    """
    parts = []
    for start in range(0, len(x), _MAX_ROWS):
        rows = x[start : start + _MAX_ROWS]
        top: Top | None = None
        for first_column, block in _product_blocks(rows, weight, bias, mapped):
            of_block = largest(block, min(k, block.shape[1]))
            of_block = Top(of_block.values, of_block.ids + first_column)
            top = of_block if top is None else _merged(top, of_block, k)
        if top is not None:
            parts.append(top)
    if not parts:
        ids = torch.empty(0, k, dtype=torch.int64, device=x.device)
        return Top(torch.empty(0, k, device=x.device), ids)
    return Top(torch.cat([top.values for top in parts]), torch.cat([top.ids for top in parts]))


def _product_blocks(
    x: Float[Tensor, "n d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, "d_out"],
    mapped: tuple[Pages, ...],
) -> Iterator[tuple[int, Float[Tensor, "n width"]]]:
    """Yield each chunk's first column and its product, which the next chunk overwrites."""
    n, d_out = len(x), len(weight)
    columns_that_fit = ENCODE_BLOCK // (4 * n) // _GROUP * _GROUP
    width = min(d_out, max(_MIN_COLUMNS, columns_that_fit))
    multiply = encoder_matmul(x.device, x.dtype)
    if multiply is float32_matmul:
        x = x.float()
    memory = torch.empty(n * width, device=x.device)
    for start in range(0, d_out, width):
        stop = min(start + width, d_out)
        block = memory[: n * (stop - start)].view(n, stop - start)
        for first in range(start, stop, _MATMUL_COLUMNS):
            last = min(first + _MATMUL_COLUMNS, stop)
            part = weight[first:last]
            multiply(x, part, bias[first:last], block[:, first - start : last - start])
            release_pages(within(mapped, part))
        yield start, block


def _merged(first: Top, second: Top, k: int) -> Top:
    """Return the k largest of both; all ids of `first` are smaller."""
    values = torch.cat([first.values, second.values], 1)
    ids = torch.cat([first.ids, second.ids], 1)
    order = torch.sort(values, dim=-1, descending=True, stable=True).indices[:, :k]
    return Top(values.gather(1, order), ids.gather(1, order))


def largest(values: Float[Tensor, "n d"], k: int) -> Top:
    """Return the k largest values of every row; ties go to the smallest index, NaN is largest."""
    d = values.shape[1]
    n_top = min(k + 1, d)  # one more, to see whether it equals the k-th
    if d >= 4 * _GROUP * n_top and d % _GROUP == 0:
        top = _largest_by_groups(values, n_top)
    else:
        top = Top(*torch.topk(values, n_top, dim=-1, sorted=True))
    has_tie = (top.values[:, 1:] == top.values[:, :-1]).any(-1)
    # Rare, but equal rows of an encoder or a residual of zeros give ties.
    for rows in has_tie.nonzero()[:, 0].split(_TIED_ROWS):
        order = torch.sort(values[rows], dim=-1, descending=True, stable=True).indices
        top.ids[rows] = order[:, :n_top]
        top.values[rows] = values[rows].gather(1, top.ids[rows])
    return Top(top.values[:, :k], top.ids[:, :k])


def _largest_by_groups(values: Float[Tensor, "n d"], k: int) -> Top:
    """torch.topk twice: over the groups' largest values, then over the values of k groups."""
    n, d = values.shape
    n_groups = d // _GROUP
    grouped = values.view(n, _GROUP, n_groups)
    groups = grouped.amax(1).topk(k, dim=-1, sorted=False).indices
    members = grouped.gather(2, groups[:, None, :].expand(n, _GROUP, k)).reshape(n, _GROUP * k)
    top = members.topk(k, dim=-1, sorted=True)
    ids = top.indices // k * n_groups + groups.gather(1, top.indices % k)
    return Top(top.values, ids)
