"""Text from a model: greedy or sampled, one prompt or many, the same either way. Knows nothing of edits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from saescope.engine.lm import LM
from saescope.engine.tokens import prompt_ids
from saescope.errors import PromptError
from saescope.sources.prompts import Message, Prompt

OnToken = Callable[[int, int], None]


@dataclass(frozen=True)
class Generation:
    """What a model wrote: token ids without the one that ends, its text, and whether it ended by itself."""

    ids: list[int]
    text: str
    ended: bool


def generate(
    lm: LM,
    prompt: str | Sequence[Mapping[str, str]],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    thinking: bool | None = None,
) -> str:
    """The model's continuation of a text, or its answer to a chat.

    `prompt` is a text, or the turns of a chat as dicts with `role` and `content`. The other arguments
    are those of `generate_batch`.
    """
    if isinstance(prompt, str):
        single = Prompt("prompt", "prompts", text=prompt)
    else:
        messages = tuple(Message(turn["role"], turn["content"]) for turn in prompt)
        single = Prompt("prompt", "prompts", messages=messages)
    [generation] = generate_batch(
        lm,
        [single],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        thinking=thinking,
    )
    return generation.text


@torch.inference_mode()
def generate_batch(
    lm: LM,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    thinking: bool | None = None,
    on_token: OnToken | None = None,
) -> list[Generation]:
    """Go on from every prompt; greedy at temperature 0, else sampled, every prompt from its own stream of `seed`.

    Chats are put through the chat template, with `thinking` on or off where it knows the difference. `on_token` is
    called with prompt and token as they come. Raises PromptError for what no model can go on from.
    """
    if max_new_tokens < 1:
        raise PromptError(f"--max-new-tokens is {max_new_tokens}: it must be at least 1")
    if not temperature >= 0:
        raise PromptError(f"--temperature is {temperature}: it must be 0 (greedy) or more")
    rows = [prompt_ids(lm, prompt, thinking=thinking) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) + max_new_tokens > lm.max_length:
            raise PromptError(
                f"prompt {prompt.id} has {len(row):,} tokens and {max_new_tokens:,} are to follow, the model reads "
                f"{lm.max_length:,}: shorten it"
            )
    written, ended = _write(lm, rows, max_new_tokens, temperature, seed, on_token)
    return [
        Generation(ids, str(lm.tokenizer.decode(ids, skip_special_tokens=True)), end)
        for ids, end in zip(written, ended, strict=True)
    ]


def _write(
    lm: LM,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    on_token: OnToken | None,
) -> tuple[list[list[int]], list[bool]]:
    ids, mask = _left_padded(rows)
    ids, mask = ids.to(lm.device), mask.to(lm.device)
    cache, ends = DynamicCache(), _ends(lm)
    draws = [torch.Generator().manual_seed(seed) for _ in rows]
    written: list[list[int]] = [[] for _ in rows]
    ended = [False] * len(rows)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    given = ids
    for _ in range(max_new_tokens):
        logits = lm.whole(
            input_ids=given,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        chosen = _choose(logits, temperature, draws)
        for row, token in enumerate(chosen.tolist()):
            if not ended[row]:
                ended[row] = token in ends
                if not ended[row]:
                    written[row].append(token)
                    if on_token:
                        on_token(row, token)
        if all(ended):
            break
        given = chosen[:, None].to(lm.device)
        # What follows a row's end is no text: nothing looks at it, and edits leave it alone.
        mask = torch.cat([mask, mask.new_tensor([[not end] for end in ended])], dim=1)
        positions = positions[:, -1:] + 1
    return written, ended


def _left_padded(
    rows: Sequence[Sequence[int]],
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.int64)
    for line, row in enumerate(rows):
        ids[line, width - len(row) :] = torch.tensor(row)
        mask[line, width - len(row) :] = 1
    return ids, mask


def _choose(
    logits: Float[Tensor, "batch vocab"], temperature: float, draws: Sequence[torch.Generator]
) -> Int[Tensor, "batch"]:
    if temperature == 0:
        return logits.argmax(dim=-1).cpu()
    chances = torch.softmax(logits.float().cpu() / temperature, dim=-1)
    drawn = [
        torch.multinomial(row, 1, generator=draw) for row, draw in zip(chances, draws, strict=True)
    ]
    return torch.cat(drawn)


def _ends(lm: LM) -> set[int]:
    """Tokens after which a model has nothing more to say."""
    config = getattr(lm.whole, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    ends = set(named) if isinstance(named, list) else {named}
    return {int(token) for token in (*ends, lm.tokenizer.eos_token_id) if token is not None}
