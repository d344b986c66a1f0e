"""Replies and KL under several conditions with transformers and forward hooks alone.

What one would write without saescope: one condition after the other, each a hook on one block,
all prompts as one batch of transformers' `generate`, and ordinary forward passes on the texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Hook = Callable[[Tensor], Tensor]
_TEXTS_AT_ONCE = 16


@dataclass(frozen=True)
class PlainEdit:
    """What one edit adds to a residual h.

    add: s·d. scale: s·relu(w·h + b)·d. project: -s·(d̂·h)·d̂.
    """

    op: Literal["add", "scale", "project"]
    strength: float
    w: Tensor
    b: float
    d: Tensor

    def change(self, h: Tensor) -> Any:
        """Return the sum that it adds."""
        if self.op == "add":
            return self.strength * self.d
        if self.op == "scale":
            return self.strength * torch.relu(h @ self.w + self.b)[..., None] * self.d
        unit = self.d / self.d.norm()
        return -self.strength * (h @ unit)[..., None] * unit


@dataclass(frozen=True)
class PlainCondition:
    """Edits of one layer, and whether prompts carry the instruction."""

    edits: tuple[PlainEdit, ...] = ()
    instructed: bool = False


class PlainScript:
    """A model with one hook at a time."""

    def __init__(self, folder: str, layer: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        auto: Any = AutoModelForCausalLM
        self.model = auto.from_pretrained(
            folder, dtype="auto", trust_remote_code=False, use_safetensors=True
        ).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, padding_side="left", trust_remote_code=False
        )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.block = self.model.model.layers[layer]

    def hooked(self, edits: Sequence[PlainEdit]) -> Any:
        """Hook the block: edits apply at every position."""

        def hook(_block: Any, _inputs: Any, output: Any) -> Any:
            resid = output[0] if isinstance(output, tuple) else output
            h = resid.float()
            changed = (h + sum(edit.change(h) for edit in edits)).to(resid.dtype)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return self.block.register_forward_hook(hook)

    @torch.inference_mode()
    def replies(self, rows: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """Greedy replies to prompts of token ids, in one batch."""
        batch = self.tokenizer.pad({"input_ids": list(rows)}, return_tensors="pt")
        ids = self.model.generate(
            **batch,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        new: list[list[int]] = ids[:, batch["input_ids"].shape[1] :].tolist()
        return [[token for token in row if token != self.tokenizer.eos_token_id] for row in new]

    @torch.inference_mode()
    def kl(self, texts: Sequence[Sequence[int]], edits: Sequence[PlainEdit]) -> float:
        """Mean KL of the next-token distributions, in nats per token."""
        total, n_tokens = 0.0, 0
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            batch = self.tokenizer.pad(
                {"input_ids": list(texts[start : start + _TEXTS_AT_ONCE])}, return_tensors="pt"
            )
            before = torch.log_softmax(self.model(**batch).logits.float(), -1)
            handle = self.hooked(edits)
            after = torch.log_softmax(self.model(**batch).logits.float(), -1)
            handle.remove()
            mask = batch["attention_mask"].bool()
            total += float((before.exp() * (before - after)).sum(-1)[mask].sum())
            n_tokens += int(mask.sum())
        return total / n_tokens

    def run(
        self,
        conditions: Sequence[PlainCondition],
        prompts: Sequence[Sequence[int]],
        instructed: Sequence[Sequence[int]],
        texts: Sequence[Sequence[int]],
        new_tokens: int,
    ) -> list[tuple[list[list[int]], float | None]]:
        """Replies and KL under each condition; no KL for an instruction."""
        results: list[tuple[list[list[int]], float | None]] = []
        for condition in conditions:
            rows = instructed if condition.instructed else prompts
            handle = self.hooked(condition.edits) if condition.edits else None
            replies = self.replies(rows, new_tokens)
            if handle:
                handle.remove()
            kl = None if condition.instructed else 0.0
            if condition.edits:
                kl = self.kl(texts, condition.edits)
            results.append((replies, kl))
        return results
