"""Generate text, greedily or by sampling. Results do not depend on batching."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from saescope.arguments import COUNT, SEED, TEMPERATURE
from saescope.engine.answers import reply_parts
from saescope.engine.cache_rows import keep_rows
from saescope.engine.growing_cache import growing_cache, text_config
from saescope.engine.lm import LM
from saescope.engine.residual import OPEN_EDITS, lowest_edited_layer, replace_outputs
from saescope.engine.split_pass import ROUNDING, PromptRows, can_split, prefill_split
from saescope.engine.tokens import prompt_ids
from saescope.errors import PromptError, SourceError
from saescope.sources.chats import Message, parse_messages
from saescope.sources.prompts import Prompt

OnToken = Callable[[int, int], None]


def generate(
    lm: LM,
    prompt: str | Sequence[Mapping[str, Any]],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    thinking: bool | None = None,
) -> str:
    """Return the model's continuation of a text, or its answer to a chat.

    `prompt` is a text, or the turns of a chat as dicts with `role` and `content`. The other
    arguments, and the errors, are those of `generate_batch`.

    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny")
    >>> ss.generate(lm, "The cat", max_new_tokens=8)
    ' was the most enormous in'
    """
    if isinstance(prompt, str):
        single = Prompt("prompt", "prompts", text=prompt)
    else:
        single = Prompt("prompt", "prompts", messages=_messages(prompt))
    [generation] = generate_batch(
        lm,
        [single],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        thinking=thinking,
    )
    return generation.text


def _messages(turns: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    if not turns:
        raise PromptError("the chat is empty: give at least one turn")
    try:
        return parse_messages(turns)
    except ValueError as error:
        raise PromptError(f"the chat cannot be read: {error}") from error


@dataclass(frozen=True)
class Generation:
    """Generated token ids without the EOS token, their text, and whether the model ended.

    `answer` is the text without thinking; a reply is `unfinished` if it ends inside its thinking.
    """

    ids: list[int]
    text: str
    ended: bool
    answer: str
    unfinished: bool


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
    """Continue every prompt: greedily at temperature 0, else sampled.

    Each prompt has its own random stream from `seed`, so its text does not depend on the others.
    Chats go through the chat template, with `thinking` on or off if the template knows it.
    `on_token` is called with the prompt's index and each new token. Raises PromptError for a
    prompt that the model cannot continue.
    """
    COUNT.check("max_new_tokens", max_new_tokens)
    TEMPERATURE.check("temperature", temperature)
    SEED.check("seed", seed)
    rows = [prompt_ids(lm, prompt, thinking=thinking) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) + max_new_tokens > lm.max_length:
            raise PromptError(
                f"prompt {prompt.id} has {len(row):,} tokens, and with {max_new_tokens:,} new "
                f"ones more than the model's maximum of {lm.max_length:,}: shorten it"
            )
    sampler = _Sampler(temperature, [torch.Generator().manual_seed(seed) for _ in rows])
    if reads_padding(lm, rows):
        replies = _continue_alone(lm, rows, max_new_tokens, sampler, on_token)
    else:
        replies = _continue(lm, rows, max_new_tokens, sampler, on_token)
    return [
        _generation(lm, prompt, row, reply)
        for prompt, row, reply in zip(prompts, rows, replies, strict=True)
    ]


@dataclass
class _Reply:
    """The tokens generated so far for one prompt."""

    ids: list[int] = field(default_factory=list)
    ended: bool = False


def _generation(lm: LM, prompt: Prompt, row: Sequence[int], reply: _Reply) -> Generation:
    text = str(lm.tokenizer.decode(reply.ids, skip_special_tokens=True))
    parts = reply_parts(lm.tokenizer, prompt, row, reply.ids)
    return Generation(reply.ids, text, reply.ended, parts.answer, parts.unfinished)


@dataclass(frozen=True)
class _Sampler:
    temperature: float
    streams: Sequence[torch.Generator]

    def choose(
        self, logits: Float[Tensor, "batch vocab"], prompts: Sequence[int]
    ) -> Int[Tensor, "batch"]:
        """Return the next token of every row, each drawn from its prompt's own random stream."""
        if self.temperature == 0:
            return logits.max(dim=-1).indices.cpu()  # five times as fast as argmax in bfloat16
        probabilities = torch.softmax(logits.float().cpu() / self.temperature, dim=-1)
        drawn = []
        for row, prompt in zip(probabilities, prompts, strict=True):
            drawn.append(torch.multinomial(row, 1, generator=self.streams[prompt]))
        return torch.cat(drawn)


def _continue_alone(
    lm: LM,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampler: _Sampler,
    on_token: OnToken | None,
) -> list[_Reply]:
    """Continue one prompt after the other, for models that would read the padding of a batch."""
    replies = []
    for index, (row, stream) in enumerate(zip(rows, sampler.streams, strict=True)):
        report = None if on_token is None else partial(_as_prompt, on_token, index)
        alone = _Sampler(sampler.temperature, [stream])
        replies += _continue(lm, [row], max_new_tokens, alone, report)
    return replies


def _as_prompt(on_token: OnToken, index: int, _row: int, token: int) -> None:
    on_token(index, token)


def reads_padding(lm: LM, rows: Sequence[Sequence[int]]) -> bool:
    """Whether padding before a prompt changes what follows it: recurrent layers may read it.

    Measured on the model itself, outside of all edits. Attention masks padding by its nature.
    """
    whole: Any = lm.whole
    if len(set(map(len, rows))) == 1 or not whole._is_stateful:
        return False
    token = list(rows[0][:1])
    alone, padded = (
        OPEN_EDITS.run_outside(partial(_next_logits, lm, [token, *other]))
        for other in ([], [token * 5])
    )
    tolerance = ROUNDING[lm.dtype == torch.float32]
    return not bool((alone - padded).abs().max() <= tolerance * alone.abs().max())


def _next_logits(lm: LM, rows: Sequence[Sequence[int]]) -> Float[Tensor, "vocab"]:
    """Return the logits after the first row, which is padded to the longest one."""
    ids, mask = left_padded(rows, lm.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.inference_mode():
        output = lm.whole(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        )
    logits: Tensor = output.logits[0, -1].float()
    return logits


def _continue(
    lm: LM,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampler: _Sampler,
    on_token: OnToken | None,
) -> list[_Reply]:
    batch = _Batch.start(lm, rows)
    ends = end_tokens(lm)
    replies = [_Reply() for _ in rows]
    head = lm.whole.get_output_embeddings()  # type: ignore[operator]
    for step in range(max_new_tokens):
        # The logits of a whole prompt could fill the memory.
        with replace_outputs((), inputs=[(head, last_position)]):
            output = batch.prefill(lm, rows) if step == 0 else batch.run(lm)
        chosen = sampler.choose(output.logits[:, -1], batch.prompts)
        for prompt_index, token in zip(batch.prompts, chosen.tolist(), strict=True):
            reply = replies[prompt_index]
            if reply.ended:
                continue
            reply.ended = token in ends
            if not reply.ended:
                reply.ids.append(token)
                if on_token:
                    on_token(prompt_index, token)
        if all(reply.ended for reply in replies):
            break
        batch.extend(chosen, [not replies[index].ended for index in batch.prompts])
    return replies


@dataclass
class _Batch:
    """Rows of prompts whose replies are being generated, and what the next step reads."""

    prompts: list[int]
    "The prompt of each row."
    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch total"]
    positions: Int[Tensor, "batch pos"]
    cache: DynamicCache

    @classmethod
    def start(cls, lm: LM, rows: Sequence[Sequence[int]]) -> "_Batch":
        """Return the batch of whole prompts."""
        ids, mask = left_padded(rows, lm.device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = growing_cache(text_config(lm.whole))
        return cls(list(range(len(rows))), ids, mask, positions, cache)

    def prefill(self, lm: LM, rows: Sequence[Sequence[int]]) -> Any:
        """Return the output for whole prompts; below all edits, equal prompts run once."""
        layer = lowest_edited_layer(lm)
        first: dict[tuple[int, ...], int] = {}
        for index, row in enumerate(rows):
            first.setdefault(tuple(row), index)
        if layer is None or len(first) == len(rows) or not can_split(lm, layer, rows[0]):
            return self.run(lm)
        kind_of = {row: kind for kind, row in enumerate(first)}
        distinct, kinds = list(first.values()), [kind_of[tuple(row)] for row in rows]
        device = self.ids.device
        prompts = PromptRows(
            self.ids,
            self.mask,
            self.positions,
            torch.tensor(distinct, device=device),
            torch.tensor(kinds, device=device),
        )
        lower_cache = growing_cache(text_config(lm.whole))
        return prefill_split(lm, layer, prompts, self.cache, lower_cache)

    def run(self, lm: LM) -> Any:
        """Return the output for the newest tokens."""
        return lm.whole(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )

    def extend(self, chosen: Int[Tensor, "batch"], unfinished: Sequence[bool]) -> None:
        """Add a token to each row. Rows that ended leave once they are a quarter of the batch."""
        self.ids = chosen[:, None].to(self.mask.device)
        # Mask the tokens after a row's end: nothing attends to them, and edits skip them.
        self.mask = torch.cat([self.mask, self.mask.new_tensor(unfinished)[:, None]], dim=1)
        self.positions = self.positions[:, -1:] + 1
        if unfinished.count(False) >= max(1, len(unfinished) // 4):
            self._keep([row for row, goes_on in enumerate(unfinished) if goes_on])

    def _keep(self, rows: list[int]) -> None:
        kept = torch.tensor(rows, device=self.mask.device)
        self.prompts = [self.prompts[row] for row in rows]
        self.ids, self.mask = self.ids[kept], self.mask[kept]
        self.positions = self.positions[kept]
        keep_rows(self.cache, kept)


def last_position(hidden: Tensor) -> Tensor:
    """Return the last position alone: logits of all others would be computed in vain."""
    # Contiguous: a matmul with a slice would copy the lm_head once per prompt.
    return hidden[:, -1:].contiguous()


def left_padded(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Return token ids, and a mask that is 1 at real tokens."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for row_index, row in enumerate(rows):
        start = width - len(row)
        ids[row_index, start:] = torch.tensor(row)
        mask[row_index, start:] = 1
    return ids.to(device), mask.to(device)


def end_tokens(lm: LM) -> set[int]:
    """Return the EOS token ids of the generation config and the tokenizer."""
    config = getattr(lm.whole, "generation_config", None)
    configured: Any = getattr(config, "eos_token_id", None)
    if not isinstance(configured, list):
        configured = [configured]
    candidates = [*configured, lm.tokenizer.eos_token_id]
    tokens = {token for token in candidates if isinstance(token, int) and token >= 0}
    if len(tokens) < len({repr(token) for token in candidates if token is not None}):
        raise SourceError(f"{lm.source} says eos_token_id is {configured!r:.80}: not token ids")
    return tokens
