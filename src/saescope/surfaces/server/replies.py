"""Replies of one HTTP request: several choices, generated at once, as text."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from saescope.control.serving.scheduler import Closing, QueueFull, Scheduler
from saescope.control.serving.work import (
    End,
    Event,
    Failure,
    Listener,
    NewToken,
    Ticket,
    Work,
)
from saescope.engine.sampling import TokenLogprobs
from saescope.surfaces.server.problems import Problem
from saescope.surfaces.server.reply_text import ReplyText

_RETRY_AFTER = 2  # seconds


@dataclass
class Choice:
    """One reply, as far as it is generated."""

    index: int
    text: ReplyText
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    receipt: dict[str, Any] | None = None

    @property
    def content(self) -> str:
        """The reply's text so far."""
        return "".join(self.pieces)


@dataclass(frozen=True)
class Piece:
    """What came in addition: some text, maybe empty, and the token that it ends with."""

    choice: Choice
    text: str
    token: NewToken | None


async def reply_pieces(
    scheduler: Scheduler, works: Sequence[Work], tokenizer: Any, stops: Sequence[str]
) -> AsyncIterator[Piece]:
    """Yield the pieces of all choices as they come; the last of each has its finish reason.

    Closing the iterator cancels what still runs. Raises Problem if the model fails.
    """
    events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    tickets: list[Ticket] = []

    def listener(index: int) -> Any:
        return lambda event: _put(loop, events, index, event)

    choices = [Choice(index, ReplyText(tokenizer, stops)) for index in range(len(works))]
    try:
        tickets += _submit(scheduler, [(work, listener(n)) for n, work in enumerate(works)])
        unfinished = len(choices)
        while unfinished:
            index, event = await events.get()
            choice = choices[index]
            if choice.finish_reason is not None:
                continue
            yield _piece(choice, event)
            if choice.text.stopped:
                tickets[index].cancel()
            # The receipt of a stopped choice comes with its End.
            unfinished -= choice.finish_reason is not None
    finally:
        for ticket in tickets:
            ticket.cancel()


def _submit(scheduler: Scheduler, works: Sequence[tuple[Work, Listener]]) -> list[Ticket]:
    try:
        return scheduler.submit(works)
    except QueueFull as error:
        raise Problem(
            429,
            str(error),
            kind="rate_limit_error",
            code="queue_full",
            headers={"Retry-After": str(_RETRY_AFTER)},
        ) from error
    except Closing as error:
        raise Problem(503, str(error), kind="server_error") from error


def _put(
    loop: asyncio.AbstractEventLoop,
    events: "asyncio.Queue[tuple[int, Event]]",
    index: int,
    event: Event,
) -> None:
    """Hand an event to the server's loop; after the loop has closed nobody waits for it."""
    try:
        loop.call_soon_threadsafe(events.put_nowait, (index, event))
    except RuntimeError:
        if not loop.is_closed():
            raise


def _piece(choice: Choice, event: Event) -> Piece:
    if isinstance(event, Failure):
        raise Problem(500, f"generation failed: {event.error}", kind="server_error")
    if isinstance(event, End):
        text = choice.text.finish()
        stopped = choice.text.stopped or event.reason == "stop"
        choice.finish_reason = "stop" if stopped else "length"
        choice.receipt = event.receipt
        choice.pieces.append(text)
        return Piece(choice, text, None)
    if choice.text.stopped:
        return Piece(choice, "", None)
    choice.ids.append(event.id)
    if event.logprobs is not None:
        choice.logprobs.append(event.logprobs)
    text = choice.text.add(event.id)
    choice.pieces.append(text)
    return Piece(choice, text, event)
