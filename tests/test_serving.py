"""Replies of the scheduler are those of the engine, whenever requests come and go."""

import queue
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from saescope.control.edits import parse_edit
from saescope.control.serving.row_batch import RowBatch
from saescope.control.serving.scheduler import Closing, Limits, QueueFull, Scheduler
from saescope.control.serving.work import End, Event, Failure, NewToken, Ticket, Work
from saescope.control.steer import steered
from saescope.engine.generate import generate_batch
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae
from saescope.engine.tokens import prompt_ids
from saescope.sources.prompts import Prompt

TEXTS = ["The", "The red dog sleeps", "A boat", "Who has the small blue boats near the", "One two"]
EDITS = ["", "2/412 scale -3", "2/30 add 6 relu decode", "2/5 add 4", "2/412 project 0.5"]


@pytest.fixture(scope="module")
def tiny_chat() -> tuple[LM, Sae]:
    # float32: another batch must not change a token.
    lm = load_lm("saescope-tiny-chat", dtype="float32")
    return lm, load_sae("saescope-tiny-chat-sae", 2)


@dataclass
class Caller:
    """Collects the events of one request."""

    events: "queue.Queue[Event]" = field(default_factory=queue.Queue)
    ids: list[int] = field(default_factory=list)

    def wait(self, n_tokens: int | None = None) -> Event:
        """Wait for this many tokens, or for the end."""
        while True:
            event = self.events.get(timeout=60)
            if not isinstance(event, NewToken):
                return event
            self.ids.append(event.id)
            if n_tokens is not None and len(self.ids) >= n_tokens:
                return event


@pytest.fixture
def scheduler(tiny_chat: tuple[LM, Sae]) -> Iterator[Scheduler]:
    lm, sae = tiny_chat
    scheduler = Scheduler(lm, [sae])
    yield scheduler
    scheduler.close()


def work_of(lm: LM, text: str, edit: str, n_tokens: int) -> Work:
    edits = (parse_edit(edit),) if edit else ()
    return Work(tuple(prompt_ids(lm, Prompt("p", "s", text=text))), edits, n_tokens)


def alone(lm: LM, sae: Sae, text: str, edit: str, n_tokens: int) -> list[int]:
    with steered(lm, [sae], [parse_edit(edit)] if edit else []):
        [reply] = generate_batch(lm, [Prompt("p", "s", text=text)], max_new_tokens=n_tokens)
    return reply.ids


def submit(scheduler: Scheduler, work: Work) -> tuple[Ticket, Caller]:
    caller = Caller()
    [ticket] = scheduler.submit([(work, caller.events.put)])
    return ticket, caller


def test_requests_that_join_and_leave_at_any_step_get_their_own_replies(
    tiny_chat: tuple[LM, Sae], scheduler: Scheduler
) -> None:
    lm, sae = tiny_chat
    chance = random.Random(17)
    jobs = [
        (chance.choice(TEXTS), chance.choice(EDITS), chance.choice([1, 3, 12, 25]))
        for _ in range(24)
    ]
    expected = {job: alone(lm, sae, *job) for job in set(jobs)}
    running: list[tuple[tuple[str, str, int], Caller]] = []
    for job in jobs:
        ticket, caller = submit(scheduler, work_of(lm, *job))
        if chance.random() < 0.2:
            caller.wait(1)
            ticket.cancel()
            continue
        running.append((job, caller))
        if chance.random() < 0.6:  # the next one joins after some steps
            caller.wait(chance.randrange(1, 5))
    for job, caller in running:
        if len(caller.ids) < job[2]:
            end = caller.wait()
            assert isinstance(end, End)
        assert caller.ids == expected[job], job


def test_a_receipt_is_about_its_own_request(
    tiny_chat: tuple[LM, Sae], scheduler: Scheduler
) -> None:
    lm, sae = tiny_chat
    jobs = [(TEXTS[1], EDITS[1], 6), (TEXTS[3], EDITS[3], 9), (TEXTS[2], EDITS[0], 5)]
    works = [work_of(lm, *job) for job in jobs]
    callers = [Caller() for _ in jobs]
    scheduler.submit(
        [(work, caller.events.put) for work, caller in zip(works, callers, strict=True)]
    )
    for job, caller in zip(jobs, callers, strict=True):
        end = caller.wait()
        assert isinstance(end, End)
        edits = [parse_edit(job[1])] if job[1] else []
        with steered(lm, [sae], edits) as receipt:
            generate_batch(lm, [Prompt("p", "s", text=job[0])], max_new_tokens=job[2])
        if not edits:
            assert end.receipt is None
            continue
        assert end.receipt is not None
        alone_too = receipt.to_dict()
        for key in ("steps", "positions", "changed", "fired"):
            assert end.receipt[key] == alone_too[key], key
        assert end.receipt["delta_norm_ratio"] == pytest.approx(alone_too["delta_norm_ratio"], 1e-4)


def test_what_does_not_fit_fails_alone(tiny_chat: tuple[LM, Sae], scheduler: Scheduler) -> None:
    lm, _ = tiny_chat
    _, wrong = submit(scheduler, work_of(lm, TEXTS[0], "5/1 scale -1", 4))
    assert isinstance(wrong.wait(), Failure)
    _, right = submit(scheduler, work_of(lm, TEXTS[0], "", 4))
    assert isinstance(right.wait(), End)


def test_a_failed_join_ends_its_replies_and_no_others(
    tiny_chat: tuple[LM, Sae], scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(_mine: RowBatch, _other: RowBatch) -> None:
        raise MemoryError("no memory")

    lm, _ = tiny_chat
    with monkeypatch.context() as patched:
        patched.setattr(RowBatch, "join", no_memory)
        _, first = submit(scheduler, work_of(lm, TEXTS[1], "", 60))
        first.wait(1)
        _, second = submit(scheduler, work_of(lm, TEXTS[2], "", 60))
        assert isinstance(first.wait(), Failure)
        assert isinstance(second.wait(), Failure)
    _, later = submit(scheduler, work_of(lm, TEXTS[0], "", 4))
    assert isinstance(later.wait(), End)


def test_a_full_queue_and_a_closed_scheduler_take_nothing(tiny_chat: tuple[LM, Sae]) -> None:
    lm, sae = tiny_chat
    scheduler = Scheduler(lm, [sae], Limits(max_batch=1, max_waiting=2))
    work = work_of(lm, TEXTS[0], "", 30)
    callers = [Caller() for _ in range(3)]
    with pytest.raises(QueueFull):
        scheduler.submit([(work, caller.events.put) for caller in callers])
    scheduler.submit([(work, caller.events.put) for caller in callers[:2]])
    scheduler.close()  # finishes what was taken
    assert all(isinstance(caller.wait(), End) for caller in callers[:2])
    with pytest.raises(Closing):
        scheduler.submit([(work, callers[2].events.put)])


def test_edit_sets_beyond_the_limit_wait_and_are_not_lost(tiny_chat: tuple[LM, Sae]) -> None:
    lm, sae = tiny_chat
    scheduler = Scheduler(lm, [sae], Limits(max_edit_sets=1))
    jobs = [(TEXTS[0], f"2/{n} add 3", 5) for n in range(5)]
    callers = [submit(scheduler, work_of(lm, *job))[1] for job in jobs]
    scheduler.close()
    for job, caller in zip(jobs, callers, strict=True):
        caller.wait()
        assert caller.ids == alone(lm, sae, *job)
