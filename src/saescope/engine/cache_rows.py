"""Rows of a KV cache: those whose replies have ended leave, the others keep their state."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

_ATTRIBUTE = "saescope_rows"


def keep_rows(cache: Any, rows: Int[Tensor, "kept"]) -> None:
    """Keep these rows of a cache and drop the others, in every kind of layer."""
    cache.reorder_cache(rows)
    kept = kept_rows(cache)
    setattr(cache, _ATTRIBUTE, rows if kept is None else kept[rows])


def kept_rows(cache: Any) -> Int[Tensor, "kept"] | None:
    """Return which rows of the prefill a cache still has; None if all."""
    rows: Tensor | None = getattr(cache, _ATTRIBUTE, None)
    return rows


def select_kept(values: Tensor, cache: Any) -> Tensor:
    """Return the rows of values computed in the prefill that a cache still has."""
    rows = kept_rows(cache)
    if rows is None or len(values) == 1:
        return values
    return torch.index_select(values, 0, rows.to(values.device))
