"""What one request asks of the model, and what it is told while that happens."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

from saescope.control.edits import Edit
from saescope.engine.sampling import TokenLogprobs

EndReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Work:
    """One reply to generate: token ids to continue, its edits, and how tokens are chosen."""

    ids: tuple[int, ...]
    edits: tuple[Edit, ...] = ()
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    n_logprobs: int | None = None
    "How many of the likeliest tokens are reported beside each token; None: no log-probabilities."


@dataclass(frozen=True)
class NewToken:
    """A generated token."""

    id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class End:
    """The end of a reply: why, and what the edits did (None without edits)."""

    reason: EndReason
    receipt: dict[str, Any] | None


@dataclass(frozen=True)
class Failure:
    """The end of a reply that the model could not finish."""

    error: Exception


Event = NewToken | End | Failure
Listener = Callable[[Event], None]
"Called in the scheduler's thread. The last event is an End or a Failure; it must not block."


@final
class Ticket:
    """A request that was taken. It can be cancelled at any time, from any thread."""

    def __init__(self, work: Work, listener: Listener) -> None:
        self.work = work
        self.tell = listener
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Stop at the next token; what is cancelled before it began is never computed."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether the request was cancelled."""
        return self._cancelled.is_set()
