"""One thread that owns the device: requests join at step boundaries and leave when they end."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, final

from saescope.control.serving.row_batch import RowBatch
from saescope.control.serving.row_edits import RowEditing
from saescope.control.serving.work import End, Failure, Listener, Ticket, Work
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.errors import ResourceError

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """How much is done at once."""

    max_batch: int = 32
    "Replies that are generated at once."

    max_waiting: int = 256
    "Replies that wait for a place; more are refused."

    max_edit_sets: int = 16
    "Different sets of edits that are applied at once; requests with further ones wait."


class QueueFull(ResourceError):
    """Too many replies wait already."""


class Closing(ResourceError):
    """The scheduler takes no requests any more."""


@final
class Scheduler:
    """Generates replies for any number of threads, in batches whose rows have their own edits.

    Call `close` at the end: it finishes what was taken, then the thread ends.
    """

    def __init__(self, lm: LM, saes: Sequence[Sae], limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._lm = lm
        self._saes = saes
        self._editing = RowEditing(lm)
        self._waiting: deque[Ticket] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._batches: list[RowBatch] = []
        self._thread = threading.Thread(target=self._run, name="saescope-device", daemon=True)
        self._thread.start()

    @property
    def closing(self) -> bool:
        """Whether new requests are refused."""
        return self._closing

    @property
    def n_running(self) -> int:
        """Number of replies that are being generated or wait."""
        with self._wake:
            return len(self._waiting) + sum(len(batch.tickets) for batch in self._batches)

    def submit(self, works: Sequence[tuple[Work, Listener]]) -> list[Ticket]:
        """Take replies to generate, all or none.

        Raises QueueFull if they would wait behind too many, and Closing after `close`.
        """
        tickets = [Ticket(work, listener) for work, listener in works]
        with self._wake:
            if self._closing:
                raise Closing("the server is stopping")
            if len(self._waiting) + len(tickets) > self.limits.max_waiting:
                raise QueueFull(f"{len(self._waiting)} replies wait already: try again later")
            self._waiting.extend(tickets)
            self._wake.notify()
        return tickets

    def call(self, function: Callable[[], T]) -> T:
        """Return what a function returns that runs in the device's thread, between two steps.

        Raises what it raises, and Closing after `close`.
        """
        future: Future[T] = Future()
        with self._wake:
            if self._closing:
                raise Closing("the server is stopping")
            self._calls.append(partial(_settle, future, function))
            self._wake.notify()
        return future.result()

    def close(self) -> None:
        """Finish what was taken and end the thread; a second call changes nothing."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self._editing.close()

    def _run(self) -> None:
        while True:
            arrivals = self._next_arrivals()
            while self._calls:
                self._calls.popleft()()
            if arrivals is None:
                return
            if arrivals:
                self._admit(arrivals)
            for batch in self._batches:
                self._step(batch)
            self._batches = _joined([batch for batch in self._batches if batch.tickets])

    def _next_arrivals(self) -> list[Ticket] | None:
        """Take what has a place now, oldest first; wait if nothing runs. None: all is done."""
        with self._wake:
            while not (self._waiting or self._batches or self._calls):
                if self._closing:
                    return None
                self._wake.wait()
            free = self.limits.max_batch - sum(len(batch.tickets) for batch in self._batches)
            active = {ticket.work.edits for batch in self._batches for ticket in batch.tickets}
            arrivals: list[Ticket] = []
            passed_over: list[Ticket] = []
            while self._waiting and len(arrivals) < free:
                ticket = self._waiting.popleft()
                edits = ticket.work.edits
                if edits and edits not in active and len(active) >= self.limits.max_edit_sets:
                    passed_over.append(ticket)
                    continue
                active.add(edits)
                arrivals.append(ticket)
            self._waiting.extendleft(reversed(passed_over))
        return arrivals

    def _admit(self, arrivals: Sequence[Ticket]) -> None:
        """Start replies as one new batch. What was cancelled while it waited is never computed."""
        live = []
        for ticket in arrivals:
            if ticket.cancelled:
                ticket.tell(End("cancelled", None))
            else:
                live.append(ticket)
        try:
            groups = list(RowBatch.groups(self._lm, live))
        except Exception as error:
            _fail(live, error)
            return
        for group in groups:
            try:
                self._batches.append(RowBatch.start(self._lm, self._saes, self._editing, group))
            except Exception as error:
                _fail(group, error)

    def _step(self, batch: RowBatch) -> None:
        try:
            batch.step()
        except Exception as error:  # such as too little memory: only these replies are lost
            _fail(batch.tickets, error)
            batch.drop_all()


def _settle(future: "Future[T]", function: Callable[[], T]) -> None:
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)


def _joined(batches: Sequence[RowBatch]) -> list[RowBatch]:
    """Put rows of several batches into one where their caches allow it."""
    joined: list[RowBatch] = []
    for batch in batches:
        if not joined or not joined[-1].can_join(batch):
            joined.append(batch)
            continue
        try:
            joined[-1].join(batch)
        except Exception as error:  # the thread lives on; these replies have no cache any more
            for lost in (joined.pop(), batch):
                _fail(lost.tickets, error)
                lost.drop_all()
    return joined


def _fail(tickets: Sequence[Ticket], error: Exception) -> None:
    for ticket in tickets:
        ticket.tell(Failure(error))
