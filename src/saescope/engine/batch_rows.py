"""How many rows a batch of replies may have, from the memory that is free."""

from typing import Any

import torch

from saescope.engine.growing_cache import text_config
from saescope.engine.lm import LM
from saescope.sources.machine import free_memory

# Measured on two cores: 192 rows write 1.7 times the tokens per second of 32, 512 hardly more.
_MOST_ROWS = 512
_SHARE = 0.25  # of the free memory
_COPIES = 3  # of the keys and values: while a cache grows, and while rows leave it


def rows_at_once(lm: LM, prompt_tokens: int, new_tokens: int) -> int:
    """Return a number of rows whose prompts, replies and logits fit a quarter of the free memory.

    It is a power of two, so that it seldom differs between runs on the same machine.
    """
    free = _free_bytes(lm.device)
    if free is None:
        return _MOST_ROWS
    row_bytes = _row_bytes(lm, prompt_tokens, new_tokens)
    rows = _MOST_ROWS
    while rows > 1 and rows * row_bytes > _SHARE * free:
        rows //= 2
    return rows


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return free_memory()


def _row_bytes(lm: LM, prompt_tokens: int, new_tokens: int) -> int:
    """Return about how many bytes one row takes: its cache, its prompt in a block, its logits."""
    config: Any = text_config(lm.whole)
    width = lm.spec.d_model
    heads = getattr(config, "num_attention_heads", None) or 1
    groups = getattr(config, "num_key_value_heads", None) or heads
    head_width = getattr(config, "head_dim", None) or width // heads
    inner = getattr(config, "intermediate_size", None)
    inner = inner if isinstance(inner, int) else 4 * width
    per_token = 2 * lm.spec.n_layers * groups * head_width * _COPIES
    in_block = 4 * inner + 8 * width
    values = (prompt_tokens + new_tokens) * per_token + prompt_tokens * in_block
    return int(values) * lm.dtype.itemsize + 8 * lm.vocab_size
