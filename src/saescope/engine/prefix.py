"""Run a prefix that several prompts share once; the prompts attend to its KV cache."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from saescope.engine.lm import LM
from saescope.engine.residual import capture


class SharedPrefix:
    """A prefix's KV cache, which any number of batches may continue, and its residuals."""

    def __init__(self, lm: LM, token_ids: Sequence[int], layers: Sequence[int]) -> None:
        """Run the prefix and keep its residuals after `layers`."""
        self.token_ids = list(token_ids)
        self._model = lm.model
        cache: Any = DynamicCache()
        ids = torch.tensor(self.token_ids, device=lm.device)
        with capture(lm, layers) as captured:
            lm.model(input_ids=ids[None], past_key_values=cache, use_cache=True)
        self._cache = Cache(layers=[_shared(layer.keys, layer.values) for layer in cache.layers])
        self._resid = {layer: resid[0] for layer, resid in captured.items()}

    def matches(self, token_ids: Sequence[int], layers: Sequence[int]) -> bool:
        """Whether this prefix has these tokens and the residuals of these layers."""
        return self.token_ids == token_ids and set(layers) <= self._resid.keys()

    def resid(self, layer: int) -> Float[Tensor, "pos d_model"]:
        """Return the prefix's residual after a layer."""
        return self._resid[layer]

    def run_suffixes(self, ids: Int[Tensor, "batch pos"]) -> None:
        """Run rows that continue the prefix."""
        start = len(self.token_ids)
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        self._model(
            input_ids=ids,
            position_ids=positions.expand(len(ids), -1),
            past_key_values=self._cache,
            use_cache=True,
        )


class _SharedLayer(DynamicLayer):
    """Keys and values of the prefix. All rows read them; those of the suffixes are discarded."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            raise RuntimeError("the prefix was not run")
        shape = (len(key_states), -1, -1, -1)
        keys = torch.cat([self.keys.expand(shape), key_states], dim=-2)
        values = torch.cat([self.values.expand(shape), value_states], dim=-2)
        return keys, values


def _shared(keys: Tensor, values: Tensor) -> _SharedLayer:
    layer = _SharedLayer()  # type: ignore[no-untyped-call]
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer
