"""A prefix that several prompts share is run once; they attend to its keys and values."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class _Shared(DynamicLayer):
    """Keys and values of the prefix: every row reads them, and what rows add is not kept."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            raise RuntimeError("the prefix was not run")
        shape = (len(key_states), -1, -1, -1)
        keys = torch.cat([self.keys.expand(shape), key_states], dim=-2)
        return keys, torch.cat([self.values.expand(shape), value_states], dim=-2)


def _shared(keys: Tensor, values: Tensor) -> _Shared:
    layer = _Shared()  # type: ignore[no-untyped-call]
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


def run_prefix(model: nn.Module, ids: Int[Tensor, "pos"]) -> Cache:
    """Run the prefix alone and keep its keys and values for any number of rows."""
    cache: Any = DynamicCache()
    model(input_ids=ids[None], past_key_values=cache, use_cache=True)
    return Cache(layers=[_shared(layer.keys, layer.values) for layer in cache.layers])


def run_after(model: nn.Module, cache: Cache, ids: Int[Tensor, "batch pos"]) -> None:
    """Run rows that go on where the prefix ends."""
    start = int(cache.get_seq_length())
    positions = torch.arange(start, start + ids.shape[1], device=ids.device)
    model(
        input_ids=ids,
        position_ids=positions.expand(len(ids), -1),
        past_key_values=cache,
        use_cache=True,
    )
