"""Neutral texts, read under any number of arms; what lies below the edits is computed once."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saescope.engine.batches import divide_into_batches, lay_out
from saescope.engine.lm import LM
from saescope.engine.residual import lowest_edited_layer
from saescope.engine.split_pass import (
    LowerOutput,
    can_split,
    head_inputs,
    head_logits,
    run_lower,
    starting_above,
)

Block = Callable[[], AbstractContextManager[object]]
"Opens a block in which the model is edited."

_BATCH_TOKENS = 1024
_LOGIT_BATCH_TOKENS = 256  # of a model whose logits have to be held instead of hidden states
_MEMORY = 2**30


@final
class NeutralPasses:
    """Forward passes on the same rows of tokens, batch by batch.

    Residuals that enter the lowest edited layer, and what the lm_head reads without edits, are
    kept up to `memory` bytes.
    """

    def __init__(self, lm: LM, rows: Sequence[Sequence[int]], memory: int = _MEMORY) -> None:
        self._lm = lm
        self._probe = max(rows, key=len, default=[0])
        # A model whose blocks cannot be skipped gives logits instead of what its lm_head reads.
        self._gives_hidden = can_split(lm, lm.spec.n_layers - 1, self._probe)
        n_tokens = _BATCH_TOKENS if self._gives_hidden else _LOGIT_BATCH_TOKENS
        self.batches = divide_into_batches([len(row) for row in rows], n_tokens, packed=False)
        self._tokens = [lay_out(batch, rows, lm.device) for batch in self.batches]
        self._memory = memory
        self._lower: dict[tuple[int, int], LowerOutput] = {}
        self._unedited: dict[int, Tensor] = {}

    def following(self, batch: int) -> Int[Tensor, "tokens"]:
        """Return the token after each token of a batch; -1 after the last one of a row."""
        tokens = self._tokens[batch]
        following = torch.full_like(tokens.ids, -1)
        following[:, :-1] = torch.where(tokens.mask[:, 1:], tokens.ids[:, 1:], -1)
        return following[tokens.mask]

    @torch.inference_mode()
    def read(self, batch: int, blocks: Sequence[Block]) -> list[Float[Tensor, "tokens d"]]:
        """Return what the lm_head reads at every token: without a block, then in each block.

        A block that edits nothing gives the very tensor of the first one.
        """
        edited: list[Tensor | None] = []
        for block in blocks:
            with block():
                layer = lowest_edited_layer(self._lm)
                edited.append(None if layer is None else self._read_above(batch, layer))
        unedited = self._read_unedited(batch)
        return [unedited, *(unedited if one is None else one for one in edited)]

    @torch.inference_mode()
    def logits(self, read: Float[Tensor, "n d"]) -> Float[Tensor, "n vocab"]:
        """Return the logits of some of what `read` returned."""
        return head_logits(self._lm, read) if self._gives_hidden else read

    def _read_above(self, batch: int, layer: int) -> Tensor:
        if not self._gives_hidden or not can_split(self._lm, layer, self._probe):
            return self._run(batch)
        with starting_above(self._lm, self._lower_output(batch, layer)):
            return self._run(batch)

    def _read_unedited(self, batch: int) -> Tensor:
        """Return the batch without blocks; kept unless edits are open around all blocks."""
        if lowest_edited_layer(self._lm) is not None:
            return self._run(batch)
        if batch not in self._unedited:
            lower = [output for (n, _), output in self._lower.items() if n == batch]
            with starting_above(self._lm, lower[-1]) if lower else nullcontext():
                read = self._run(batch)
            if not self._fits(read):
                return read
            self._unedited[batch] = read
        return self._unedited[batch]

    def _lower_output(self, batch: int, layer: int) -> LowerOutput:
        key = batch, layer
        if key not in self._lower:
            lower = run_lower(self._lm, layer, **self._inputs(batch))
            if not self._fits(lower.resid):
                return lower
            self._lower[key] = lower
        return self._lower[key]

    def _fits(self, values: Tensor) -> bool:
        """Whether there is memory to keep these values too."""
        kept = [*self._unedited.values(), *(lower.resid for lower in self._lower.values())]
        return sum(tensor.nbytes for tensor in kept) + values.nbytes <= self._memory

    def _run(self, batch: int) -> Tensor:
        inputs, mask = self._inputs(batch), self._tokens[batch].mask
        if self._gives_hidden:
            return head_inputs(self._lm, **inputs)[mask]
        logits: Tensor = self._lm.whole(**inputs).logits[mask]
        return logits

    def _inputs(self, batch: int) -> dict[str, Any]:
        tokens = self._tokens[batch]
        return {
            "input_ids": tokens.ids,
            "attention_mask": tokens.mask.long(),
            "use_cache": False,
        }
