"""/v1/chat/completions and /v1/completions."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from saescope.control.serving.work import Work
from saescope.engine.tokens import TokenText, prompt_ids
from saescope.errors import SaescopeError
from saescope.sources.chats import parse_messages
from saescope.sources.prompts import Prompt
from saescope.surfaces.server.guard import event
from saescope.surfaces.server.openai_bodies import MOST_CHOICES, ChatBody, CompletionBody
from saescope.surfaces.server.openai_replies import ChatReply, CompletionReply, logprobs_of
from saescope.surfaces.server.problems import Problem
from saescope.surfaces.server.replies import Choice, Piece, reply_pieces
from saescope.surfaces.server.service import RequestSteering, Service

_CHAT_TOKENS, _COMPLETION_TOKENS = 256, 16
_POLL = 0.25  # seconds between two looks whether a client has left
Kind = Literal["chat", "text"]


@dataclass(frozen=True)
class _Job:
    """A request, ready to be generated."""

    kind: Kind
    id: str
    created: int
    model: str
    works: Sequence[Work]
    n_prompt_tokens: int
    stops: Sequence[str]
    steering: RequestSteering

    def head(self, object_name: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": object_name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
        }

    def usage(self, choices: Sequence[Choice]) -> dict[str, int]:
        n_new = sum(len(choice.ids) for choice in choices)
        return {
            "prompt_tokens": self.n_prompt_tokens,
            "completion_tokens": n_new,
            "total_tokens": self.n_prompt_tokens + n_new,
        }

    def receipts(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the extension fields of a reply: nothing if there was no steering."""
        receipts = [self.steering.receipt(choice.receipt) for choice in choices]
        if not self.steering.edits:
            return {}
        return {"steering_receipt": receipts[0] if len(receipts) == 1 else receipts}


def completions_router(service: Service) -> APIRouter:
    """Return the routes of the two completion endpoints."""
    router = APIRouter(tags=["completions"])

    @router.post("/v1/chat/completions", response_model=ChatReply)
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """Answer a chat, with edits if `steering` asks for them."""
        job = await asyncio.to_thread(_chat_job, service, body)
        return await _answer(service, job, body, request)

    @router.post("/v1/completions", response_model=CompletionReply)
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Continue one text or several, with edits if `steering` asks for them."""
        job = await asyncio.to_thread(_text_job, service, body)
        return await _answer(service, job, body, request)

    return router


def _chat_job(service: Service, body: ChatBody) -> _Job:
    body.check_supported()
    steering = service.steering(body.model, body.steering)
    turns = [message.model_dump(exclude_none=True) for message in body.messages]
    try:
        messages = parse_messages(turns)
        prompt = Prompt("messages", "request", messages=messages)
        ids = prompt_ids(service.lm, prompt, thinking=body.thinking)
    except (ValueError, SaescopeError) as error:
        raise Problem(400, str(error), param="messages") from error
    limit = body.most_tokens or min(_CHAT_TOKENS, max(1, service.lm.max_length - len(ids)))
    works = _works(service, body, [ids], limit, body.n_logprobs, steering)
    return _job("chat", service, body, works, len(ids), steering)


def _text_job(service: Service, body: CompletionBody) -> _Job:
    body.check_supported()
    steering = service.steering(body.model, body.steering)
    rows = [_text_ids(service, prompt) for prompt in body.prompts]
    longest = max(map(len, rows))
    limit = body.max_tokens or min(_COMPLETION_TOKENS, max(1, service.lm.max_length - longest))
    works = _works(service, body, rows, limit, body.logprobs, steering)
    return _job("text", service, body, works, sum(map(len, rows)), steering)


def _job(
    kind: Kind,
    service: Service,
    body: ChatBody | CompletionBody,
    works: Sequence[Work],
    n_prompt_tokens: int,
    steering: RequestSteering,
) -> _Job:
    prefix = {"chat": "chatcmpl", "text": "cmpl"}[kind]
    name = f"{prefix}-{secrets.token_hex(12)}"
    now = int(time.time())
    return _Job(kind, name, now, body.model, works, n_prompt_tokens, body.stops, steering)


def _text_ids(service: Service, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, list):
        if max(prompt) >= service.lm.vocab_size:
            raise Problem(
                400,
                f"token {max(prompt)} is outside the vocabulary ({service.lm.vocab_size:,})",
                param="prompt",
            )
        return prompt
    try:
        return prompt_ids(service.lm, Prompt("prompt", "request", text=prompt))
    except SaescopeError as error:
        raise Problem(400, str(error), param="prompt") from error


def _works(
    service: Service,
    body: ChatBody | CompletionBody,
    rows: Sequence[Sequence[int]],
    limit: int,
    n_logprobs: int | None,
    steering: RequestSteering,
) -> list[Work]:
    n = body.n or 1
    if len(rows) * n > MOST_CHOICES * 4:
        raise Problem(400, f"{len(rows) * n} replies: at most {MOST_CHOICES * 4}", param="n")
    seed = secrets.randbits(31) if body.seed is None else body.seed
    return [
        service.work_of(
            row,
            edits=steering.edits,
            max_new_tokens=limit,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=(seed + draw) % 2**63,
            n_logprobs=n_logprobs,
        )
        for row in rows
        for draw in range(n)
    ]


async def _answer(
    service: Service, job: _Job, body: ChatBody | CompletionBody, request: Request
) -> Response:
    pieces = reply_pieces(service.scheduler, job.works, service.lm.tokenizer, job.stops)
    text_of = TokenText(service.lm.tokenizer)
    if not body.stream:
        choices = await _until_left(_all_choices(pieces, len(job.works)), request)
        return JSONResponse(_whole_reply(job, choices, text_of))
    # A refusal must have its own status: the first piece is awaited before the headers go out.
    first = await anext(pieces)
    events = _stream(job, first, pieces, text_of, with_usage=body.wants_usage)
    return StreamingResponse(
        events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
    )


async def _all_choices(pieces: AsyncIterator[Piece], n_choices: int) -> list[Choice]:
    choices: dict[int, Choice] = {}
    async for piece in pieces:
        choices[piece.choice.index] = piece.choice
    return [choices[index] for index in range(n_choices)]


async def _until_left(work: Awaitable[list[Choice]], request: Request) -> list[Choice]:
    """Await a reply; if the client leaves meanwhile, it is cancelled."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_POLL)
            if not task.done() and await request.is_disconnected():
                raise Problem(499, "the client has left")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _whole_reply(job: _Job, choices: Sequence[Choice], text_of: TokenText) -> dict[str, Any]:
    rows = []
    for choice in choices:
        row: dict[str, Any] = {"index": choice.index, "finish_reason": choice.finish_reason}
        if job.kind == "chat":
            message = {"role": "assistant", "content": choice.content, "refusal": None}
            row["message"] = message
        else:
            row["text"] = choice.content
        row["logprobs"] = logprobs_of(job.kind, choice.ids, choice.logprobs, text_of)
        rows.append(row)
    object_name = "chat.completion" if job.kind == "chat" else "text_completion"
    return {
        **job.head(object_name),
        "choices": rows,
        "usage": job.usage(choices),
        **job.receipts(choices),
    }


async def _stream(
    job: _Job,
    first: Piece,
    rest: AsyncIterator[Piece],
    text_of: TokenText,
    *,
    with_usage: bool,
) -> AsyncIterator[str]:
    choices: dict[int, Choice] = {}
    chunk = _chunks(job, text_of)
    try:
        yield chunk(first, first.choice.index not in choices)
        choices[first.choice.index] = first.choice
        async for piece in rest:
            is_first = piece.choice.index not in choices
            choices[piece.choice.index] = piece.choice
            if piece.text or piece.token or piece.choice.finish_reason:
                yield chunk(piece, is_first)
    except Problem as problem:
        yield event(problem.body())
        return
    finally:
        await rest.aclose()  # type: ignore[attr-defined]
    ordered = [choices[index] for index in sorted(choices)]
    extras = job.receipts(ordered)
    usage = {"usage": job.usage(ordered)} if with_usage else {}
    if extras or usage:
        yield event({**_chunk_head(job), "choices": [], **usage, **extras})
    yield event("[DONE]")


def _chunk_head(job: _Job) -> dict[str, Any]:
    return job.head("chat.completion.chunk" if job.kind == "chat" else "text_completion")


def _chunks(job: _Job, text_of: TokenText) -> Callable[[Piece, bool], str]:
    """Return the function that writes one chunk of a stream."""
    head = _chunk_head(job)

    def chunk(piece: Piece, is_first: bool) -> str:
        row: dict[str, Any] = {
            "index": piece.choice.index,
            "finish_reason": piece.choice.finish_reason,
        }
        if job.kind == "chat":
            role = {"role": "assistant"} if is_first else {}
            row["delta"] = {**role, **({"content": piece.text} if piece.text or is_first else {})}
        else:
            row["text"] = piece.text
        token = piece.token
        if token is not None and token.logprobs is not None:
            row["logprobs"] = logprobs_of(job.kind, [token.id], [token.logprobs], text_of)
        else:
            row["logprobs"] = None
        return event({**head, "choices": [row]})

    return chunk
