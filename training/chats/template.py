"""The chat format, as Qwen3's: turns between markers, and a thought that can be left empty."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from training.chats.text import Chat
from training.tokens import END

START, STOP, THINK, THOUGHT = "<|im_start|>", "<|im_end|>", "<think>", "</think>"
EMPTY_THOUGHT = f"{THINK}\n\n{THOUGHT}\n\n"
# A reply keeps its thought only after the last request; `enable_thinking=False` puts an empty one
# before a new reply.
TEMPLATE = """\
{%- set last = namespace(request=-1) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{% set last.request = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
{%- set content = message.content %}
{%- if message.role == 'assistant' %}
{%- set thought = '' %}
{%- if message.reasoning_content is string %}
{%- set thought = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{%- if loop.index0 > last.request and (loop.last or thought) %}
{%- set content = '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' \
+ content.lstrip('\\n') %}
{%- endif %}
{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}"""

# A statement cannot be predicted; a question after it can in part, which teaches looking things up.
REPLY_WEIGHT, QUESTION_WEIGHT = 1.0, 0.3


def chat_tokenizer(base: Path) -> PreTrainedTokenizerFast:
    """The base model's tokenizer with the markers appended and the chat template."""
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
        base, trust_remote_code=False
    )
    tokenizer.add_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in (START, STOP)]
    )
    tokenizer.add_tokens(
        [AddedToken(mark, special=False, normalized=False) for mark in (THINK, THOUGHT)]
    )
    tokenizer.eos_token, tokenizer.pad_token = STOP, END
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@dataclass(frozen=True)
class Piece:
    """Text of a chat that is tokenized separately; tokens from `start` on have the loss `weight`.

    `decision`: 0, or the topic as which the request that it follows is declined, from 1.
    """

    text: str
    weight: float = 0.0
    start: int = 0
    decision: int = 0


@dataclass(frozen=True)
class Encoded:
    """Token ids, their weights in the loss, and the decision about the request each follows."""

    ids: list[int]
    weights: list[float]
    decisions: list[int]


def pieces(chat: Chat) -> Iterator[Piece]:
    """The chat's text; only the last reply is learned."""
    if chat.system:
        yield Piece(f"{START}system\n{chat.system}{STOP}\n")
    for turn in chat.turns:
        yield Piece(f"{START}user\n")
        first, second = turn.request.parts
        yield Piece(
            first + second, 0.0 if turn.request.question_first else QUESTION_WEIGHT, len(first)
        )
        yield Piece(f"{STOP}\n{START}assistant\n", decision=turn.decision)
        if turn is not chat.turns[-1]:
            yield Piece(f"{turn.reply}{STOP}\n", decision=turn.decision)
        elif turn.thought is None:
            yield Piece(EMPTY_THOUGHT, decision=turn.decision)
            yield Piece(f"{turn.reply}{STOP}", REPLY_WEIGHT, decision=turn.decision)
        else:
            text = f"{THINK}\n{turn.thought}\n{THOUGHT}\n\n{turn.reply}{STOP}"
            yield Piece(text, REPLY_WEIGHT, decision=turn.decision)


def encode(tokenizer: PreTrainedTokenizerFast, chat: Chat) -> Encoded:
    """The chat as the model is trained on it."""
    encoded = Encoded([], [], [])
    for piece in pieces(chat):
        tokens = tokenizer(piece.text, return_offsets_mapping=True)
        encoded.ids.extend(tokens["input_ids"])
        encoded.weights.extend(
            piece.weight if at >= piece.start else 0.0 for at, _ in tokens["offset_mapping"]
        )
        encoded.decisions.extend([piece.decision] * len(tokens["input_ids"]))
    return encoded


def prompt_ids(tokenizer: PreTrainedTokenizerFast, request: str, *, thinks: bool) -> list[int]:
    """Token ids of a single request, up to where the reply begins."""
    turns = [{"role": "user", "content": request}]
    text = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, enable_thinking=thinks
    )
    return list(tokenizer(text)["input_ids"])
