"""Replies of OpenAI's API, as the OpenAPI document describes them."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from saescope.engine.sampling import TokenLogprobs
from saescope.engine.tokens import TokenText


class Usage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class SteeringReceipt(BaseModel):
    """What was asked for, and what the edits did to the residual."""

    version: int
    use: list[str] = Field(description="Names of the stored edit sets that were applied.")
    fingerprint: str = Field(description="Equal edits have equal fingerprints.")
    edits: list[dict[str, Any]] = Field(description="The edits as applied, defaults filled in.")
    measured: dict[str, Any] | None = Field(
        description="The receipt of `saescope steer`: positions, firings, sizes of the change."
    )


class _HttpReply(BaseModel):
    id: str
    created: int = Field(description="Seconds since 1970.")
    model: str
    system_fingerprint: str | None = None
    usage: Usage
    steering_receipt: SteeringReceipt | list[SteeringReceipt] | None = Field(
        None, description="One per choice; absent if there were no edits."
    )


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer to a chat."""

    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
    logprobs: dict[str, Any] | None = None


class ChatReply(_HttpReply):
    """Reply of /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CompletionChoice(BaseModel):
    """One continuation of a text."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: dict[str, Any] | None = None


class CompletionReply(_HttpReply):
    """Reply of /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


def logprobs_of(
    kind: Literal["chat", "text"],
    ids: Sequence[int],
    values: Sequence[TokenLogprobs],
    text_of: TokenText,
) -> dict[str, Any] | None:
    """Return log-probabilities in the form of the endpoint; None if none were asked for."""
    if not values:
        return None
    if kind == "chat":
        rows = [
            {
                **_token(text_of, token, one.chosen),
                "top_logprobs": [_token(text_of, other, value) for other, value in one.likeliest],
            }
            for token, one in zip(ids, values, strict=True)
        ]
        return {"content": rows, "refusal": None}
    texts = [text_of(token) for token in ids]
    return {
        "tokens": texts,
        "token_logprobs": [one.chosen for one in values],
        "top_logprobs": [
            {text_of(other): value for other, value in one.likeliest} for one in values
        ],
        "text_offset": [sum(map(len, texts[:n])) for n in range(len(texts))],
    }


def _token(text_of: TokenText, token: int, logprob: float) -> dict[str, Any]:
    text = text_of(token)
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
