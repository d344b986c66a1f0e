"""saescope's figures again, by transformers, torch and hooks alone, without its code.

`figures` reads a chat model, one SAE file and requests, and returns how often a feature fires in
each set, one text with and without an edit, the KL of the edit on neutral text, and how many
replies hold a phrase before and after.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class Question:
    """A feature, an edit `scale` of it, and the texts that it is measured on."""

    model: Path
    sae: Path  # one layer's file in the Qwen-Scope format, for TopK with `k`
    layer: int
    k: int
    feature: int
    strength: float
    requests: dict[str, list[list[dict[str, str]]]]  # chats by set
    target: str
    neutral: list[str]
    phrase: str
    last: int
    max_new_tokens: int


class Plain:
    """The model, its tokenizer and the SAE, in float32."""

    def __init__(self, question: Question) -> None:
        self.ask = question
        self.tokenizer = AutoTokenizer.from_pretrained(question.model, trust_remote_code=False)
        self.model = AutoModelForCausalLM.from_pretrained(
            question.model, dtype=torch.float32, trust_remote_code=False
        ).eval()
        self.sae = torch.load(question.sae, weights_only=True)
        self.block = self.model.model.layers[question.layer]

    def chat_ids(self, turns: list[dict[str, str]], **options: bool) -> list[int]:
        """Token ids of a chat, up to where the reply begins."""
        text = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **options
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def residuals(self, ids: Sequence[int]) -> Tensor:
        """What the layer writes at every position."""
        seen: list[Tensor] = []
        handle = self.block.register_forward_hook(lambda _m, _i, out: seen.append(out))
        self.model(input_ids=torch.tensor([ids]), use_cache=False)
        handle.remove()
        return seen[0][0]

    def fires(self, ids: Sequence[int]) -> Tensor:
        """Where the feature is among the k largest and above 0, at every position."""
        pre_acts = self.residuals(ids) @ self.sae["W_enc"].T + self.sae["b_enc"]
        top = pre_acts.topk(self.ask.k, dim=-1)
        return ((top.indices == self.ask.feature) & (top.values > 0)).any(-1)

    @contextmanager
    def edited(self, mean: Tensor | None = None) -> Iterator[None]:
        """Add strength · relu(w·h + b) · d after the layer, but not at the first position or sinks.

        With a mean, project d out about it. A sink: over 10 times the lower median of the others.
        """
        w, b = self.sae["W_enc"][self.ask.feature], self.sae["b_enc"][self.ask.feature]
        d = self.sae["W_dec"][:, self.ask.feature]
        limit = torch.inf

        def hook(_module: Any, _inputs: Any, h: Tensor) -> Tensor:
            nonlocal limit
            norms = h[0].norm(dim=-1)
            editable = torch.ones(len(norms), dtype=torch.bool)
            if len(norms) > 1:  # a prompt; later passes hold one new token each
                limit = 10 * float(norms[1:].sort().values[(len(norms) - 2) // 2])
                editable[0] = False
            editable &= norms <= limit
            change = self.ask.strength * (h @ w + b).relu()[..., None] * d
            if mean is not None:
                change = -((h - mean) @ d)[..., None] * d / d.norm() ** 2
            return torch.where(editable[None, :, None], h + change, h)

        handle = self.block.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def reply(self, ids: Sequence[int]) -> str:
        """The greedy reply to token ids."""
        prompt = torch.tensor([list(ids)])
        output = self.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=self.ask.max_new_tokens,
            pad_token_id=self.tokenizer.eos_token_id,
        )
        return str(self.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)).strip()

    def log_probs(self, ids: Sequence[int]) -> Tensor:
        """Log-probabilities of the token after each position."""
        logits: Tensor = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits
        return logits[0].log_softmax(-1)

    def divergence(self, texts: Sequence[list[int]], mean: Tensor | None = None) -> float:
        """Mean KL per token from the model to the edited one."""
        each = []
        for ids in texts:
            unedited = self.log_probs(ids)
            with self.edited(mean):
                each.append(
                    (unedited.exp() * (unedited - self.log_probs(ids))).sum(-1).clamp(min=0)
                )
        return torch.cat(each).mean().item()


@torch.inference_mode()
def figures(question: Question) -> dict[str, Any]:
    """All figures of a question."""
    plain = Plain(question)
    rates = {}
    for name, chats in question.requests.items():
        fires = [plain.fires(plain.chat_ids(turns))[1:][-question.last :] for turns in chats]
        rates[name] = torch.cat(fires).float().mean().item()
    target = [plain.chat_ids(t, enable_thinking=False) for t in question.requests[question.target]]
    before = [plain.reply(ids) for ids in target]
    with plain.edited():
        after = [plain.reply(ids) for ids in target]
    texts = [plain.tokenizer(text)["input_ids"] for text in question.neutral]
    mean = torch.cat([plain.residuals(ids)[1:] for ids in texts]).mean(0)
    shown = [sum(question.phrase in reply for reply in replies) for replies in (before, after)]
    return {
        "rates": rates,
        "before": before[0],
        "after": after[0],
        "kl": plain.divergence(texts),
        "kl_project": plain.divergence(texts, mean),
        "shown": [count / len(target) for count in shown],
    }
