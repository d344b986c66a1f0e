"""KV caches that grow in place: a new token does not copy the keys and values before it."""

from typing import Any, final

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

_ROOM = 64  # tokens


def growing_cache(config: Any) -> DynamicCache:
    """Return an empty cache for a model's text config; its keys and values grow in place.

    Layers that keep a window or a state instead of all keys and values are transformers' own.
    """
    cache = DynamicCache(config=config)
    cache.layers = [_growing(layer) for layer in cache.layers]
    if getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    return cache


def text_config(whole: Any) -> Any:
    """Return the config of a model's text decoder, which says which layers keep what."""
    return whole.config.get_text_config(decoder=True)


def _growing(layer: Any) -> Any:
    return GrowingLayer() if type(layer) is DynamicLayer else layer  # type: ignore[no-untyped-call]


@final
class GrowingLayer(DynamicLayer):
    """Keys and values of one layer: the used part of buffers with room for more tokens."""

    _buffers: tuple[Tensor, Tensor] | None = None
    _used: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values, and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = self.get_seq_length()
        total = past + key_states.shape[-2]
        keys, values = self._with_room(past, total, key_states, value_states)
        keys[:, :, past:total] = key_states
        values[:, :, past:total] = value_states
        self.keys, self.values = keys[:, :, :total], values[:, :, :total]
        self._used = self.keys, self.values
        return self._used

    def _with_room(
        self, past: int, total: int, key_states: Tensor, value_states: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return buffers that hold what is used and have room; others if rows were selected."""
        is_current = self._used is not None and self.keys is self._used[0]
        if self._buffers is not None and is_current and total <= self._buffers[0].shape[-2]:
            return self._buffers
        buffers = []
        for used, states in ((self.keys, key_states), (self.values, value_states)):
            rows, heads, _, width = states.shape
            buffer = states.new_empty(rows, heads, total + _ROOM, width)
            if past and used is not None:
                buffer[:, :, :past] = used
            buffers.append(buffer)
        self._buffers = buffers[0], buffers[1]
        return self._buffers
