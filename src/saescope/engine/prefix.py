"""A prefix that several prompts share is run once; they attend to its keys and values."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class _Shared(DynamicLayer):
    """Keys and values of the prefix: every row reads them, and what rows add is not kept."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        rows = len(key_states)
        keys = torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2)
        return keys, torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2)


def run_prefix(model: nn.Module, ids: Int[Tensor, "pos"]) -> Cache:
    """Run the prefix alone and keep its keys and values for any number of rows."""
    cache: Any = DynamicCache()
    model(input_ids=ids[None], past_key_values=cache, use_cache=True)
    return Cache(layers=[_Shared(layer.keys, layer.values) for layer in cache.layers])


def run_after(model: nn.Module, cache: Cache, ids: Int[Tensor, "batch pos"]) -> None:
    """Run rows that go on where the prefix ends."""
    start = int(cache.get_seq_length())
    positions = torch.arange(start, start + ids.shape[1], device=ids.device)
    model(input_ids=ids, position_ids=positions.expand(len(ids), -1), past_key_values=cache, use_cache=True)
