"""The k largest values of every row, exactly, and of a product that is never held whole.

Of equal values the one with the smaller index counts as larger, so the answer does not depend on blocks or kernels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saescope.engine.encoder_matmul import encoder_product, in_float32
from saescope.engine.pages import Pages, release_pages, within
from saescope.sources.budget import ENCODE_BLOCK

# Values looked at together: only groups whose largest value is among the k largest of all groups can matter.
_GROUP = 32
_LEAST_COLUMNS, _MOST_ROWS = 8192, 1024
# A product is made this many columns at a time: its memory is used again, and stays in the processor's caches.
_PRODUCT_COLUMNS = 2048
_TIED_ROWS = 64


class Top(NamedTuple):
    """The largest values of every row, largest first, and where they stand."""

    values: Float[Tensor, "n k"]
    ids: Int[Tensor, "n k"]


def largest(values: Float[Tensor, "n d"], k: int) -> Top:
    """The k largest values of every row, of equal ones those with the smallest index; NaN counts as largest."""
    d = values.shape[1]
    wanted = min(k + 1, d)  # one more: whether it equals the k-th
    if d >= 4 * _GROUP * wanted and d % _GROUP == 0:
        top = _by_groups(values, wanted)
    else:
        top = Top(*torch.topk(values, wanted, dim=-1, sorted=True))
    tied = (top.values[:, 1:] == top.values[:, :-1]).any(-1)
    # Rare, but equal rows of an encoder or a residual of zeros make it so.
    for rows in tied.nonzero()[:, 0].split(_TIED_ROWS):
        top.ids[rows] = torch.sort(values[rows], dim=-1, descending=True, stable=True).indices[
            :, :wanted
        ]
        top.values[rows] = values[rows].gather(1, top.ids[rows])
    return Top(top.values[:, :k], top.ids[:, :k])


def _by_groups(values: Float[Tensor, "n d"], k: int) -> Top:
    """torch.topk twice: over the groups' largest values, then over the values of the k groups it finds."""
    n, d = values.shape
    grouped = values.view(n, _GROUP, d // _GROUP)
    groups = grouped.amax(1).topk(k, dim=-1, sorted=False).indices
    found = (
        grouped.gather(2, groups[:, None, :].expand(n, _GROUP, k))
        .reshape(n, _GROUP * k)
        .topk(k, dim=-1, sorted=True)
    )
    return Top(
        found.values, found.indices // k * (d // _GROUP) + groups.gather(1, found.indices % k)
    )


def largest_products(
    x: Float[Tensor, "n d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, "d_out"],
    k: int,
    mapped: tuple[Pages, ...] = (),
) -> Top:
    """The k largest of x · weightᵀ + bias in every row, in float32; holds ENCODE_BLOCK bytes of the product at once.

    Pages of the weight that are `mapped` from a file are given back as soon as they are used.
    """
    parts = []
    for start in range(0, len(x), _MOST_ROWS):
        rows = x[start : start + _MOST_ROWS]
        top: Top | None = None
        for first, held in _products(rows, weight, bias, mapped):
            own = largest(held, min(k, held.shape[1]))
            own = Top(own.values, own.ids + first)
            top = own if top is None else _merged(top, own, k)
        if top is not None:
            parts.append(top)
    if not parts:
        return Top(
            torch.empty(0, k, device=x.device),
            torch.empty(0, k, dtype=torch.int64, device=x.device),
        )
    return Top(torch.cat([top.values for top in parts]), torch.cat([top.ids for top in parts]))


def _products(
    x: Float[Tensor, "n d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, "d_out"],
    mapped: tuple[Pages, ...],
) -> Iterator[tuple[int, Float[Tensor, "n width"]]]:  # fmt: skip
    """(first column, product) of as many columns at a time as the block holds; the next overwrites it."""
    n, d_out = len(x), len(weight)
    width = min(d_out, max(_LEAST_COLUMNS, ENCODE_BLOCK // (4 * n) // _GROUP * _GROUP))
    multiply = encoder_product(x.device, x.dtype)
    x = x.float() if multiply is in_float32 else x
    block = torch.empty(n * width, device=x.device)
    for start in range(0, d_out, width):
        stop = min(start + width, d_out)
        held = block[: n * (stop - start)].view(n, stop - start)
        for first in range(start, stop, _PRODUCT_COLUMNS):
            columns = slice(first, min(first + _PRODUCT_COLUMNS, stop))
            multiply(
                x, weight[columns], bias[columns], held[:, first - start : columns.stop - start]
            )
            release_pages(within(mapped, weight[columns]))
        yield start, held


def _merged(first: Top, second: Top, k: int) -> Top:
    """The k largest of both; all ids of `first` are smaller."""
    values, ids = torch.cat([first.values, second.values], 1), torch.cat([first.ids, second.ids], 1)
    order = torch.sort(values, dim=-1, descending=True, stable=True).indices[:, :k]
    return Top(values.gather(1, order), ids.gather(1, order))
