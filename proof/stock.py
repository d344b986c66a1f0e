"""Replies by transformers alone, of a checkpoint or of a base model with a LoRA adapter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from saescope.sources.prompts import Prompt

ROWS = 32


def stock_replies(
    model: Path, prompts: Sequence[Prompt], max_new_tokens: int, adapter: Path | None = None
) -> list[str]:
    """The greedy reply of the folder's own model to each chat, in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left", trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    lm: Any = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, trust_remote_code=False
    )
    if adapter is not None:
        from peft import PeftModel

        lm = PeftModel.from_pretrained(lm, adapter)
    lm.eval()
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n].display_text))
    replies = [""] * len(prompts)
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        texts = [_rendered(tokenizer, prompts[n]) for n in rows]
        for n, reply in zip(rows, _generate(lm, tokenizer, texts, max_new_tokens), strict=True):
            replies[n] = reply
    return replies


def _rendered(tokenizer: Any, prompt: Prompt) -> str:
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt.messages or ()]
    text: str = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return text


@torch.inference_mode()
def _generate(lm: Any, tokenizer: Any, texts: Sequence[str], max_new_tokens: int) -> list[str]:
    batch = tokenizer(list(texts), return_tensors="pt", padding=True, add_special_tokens=False)
    batch.pop("token_type_ids", None)
    output = lm.generate(
        **batch,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
    )
    new = output[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
