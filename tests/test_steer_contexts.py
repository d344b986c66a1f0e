"""Edits belong to the context that opened them; a block ends however and wherever it is left."""

import asyncio
import gc
import linecache
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from contextvars import copy_context
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import Pair
from saescope.control import steer
from saescope.control.edits import Edit
from saescope.control.steer import steered
from saescope.engine import contexts, residual
from saescope.engine.generate import generate
from saescope.engine.lm import LM
from saescope.engine.residual import capture, is_edited, swap_parameter
from saescope.engine.sae import Sae
from saescope.errors import EditError
from saescope.sources.catalog import Feature

IDS = torch.arange(3, 20)[None]
FIRST = [Edit(Feature(1, 3), "add", 5.0)]
SECOND = [Edit(Feature(2, 9), "add", -4.0)]
TINY = [Edit(Feature(1, 17), "add", 0.001)]


class World:
    """A model, its SAEs, and its logits without edits."""

    def __init__(self, lm: LM, saes: list[Sae]) -> None:
        self.lm, self.saes = lm, saes
        self.plain = self.logits()
        self.first, self.second = self.alone(FIRST), self.alone(SECOND)

    def logits(self) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = self.lm.whole(input_ids=IDS, use_cache=False).logits
        return logits

    def steered(self, edits: list[Edit]) -> Any:
        return steered(self.lm, self.saes, edits)

    def alone(self, edits: list[Edit]) -> Tensor:
        with self.steered(edits):
            return self.logits()

    def stream(self, edits: list[Edit]) -> Iterator[Tensor]:
        with self.steered(edits):
            while True:
                yield self.logits()

    async def astream(self, edits: list[Edit]) -> AsyncIterator[Tensor]:
        with self.steered(edits):
            while True:
                yield await asyncio.to_thread(self.logits)

    @property
    def hooks(self) -> int:
        modules = {*self.lm.whole.modules(), *self.lm.model.modules()}
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)

    def is_untouched(self) -> bool:
        return not self.hooks and not steer._HOOKS and same(self.logits(), self.plain)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b)


def in_thread(call: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@pytest.fixture(scope="module")
def loaded(pair: Pair) -> World:
    return World(*pair.load(1, 2))


@pytest.fixture
def world(loaded: World) -> Iterator[World]:
    yield loaded
    assert loaded.is_untouched()


# --- blocks closed in another order, or elsewhere


def test_first_opened_first_closed(world: World) -> None:
    a, b = world.steered(FIRST), world.steered(SECOND)
    a.__enter__(), b.__enter__()
    a.__exit__(None, None, None)
    assert same(world.logits(), world.second)
    b.__exit__(None, None, None)
    assert same(world.alone(TINY), world.alone(TINY))
    assert world.is_untouched()


def test_a_stack_may_close_blocks_before_later_ones(world: World) -> None:
    stack = ExitStack()
    stack.enter_context(world.steered(FIRST))
    with world.steered(SECOND):
        stack.close()
        assert same(world.logits(), world.second)


def test_closed_edits_stay_closed(world: World) -> None:
    tiny = world.alone(TINY)
    a, b = world.stream(FIRST), world.stream(SECOND)
    next(a), next(b)
    a.close(), b.close()  # type: ignore[attr-defined]
    assert same(world.alone(TINY), tiny)


def test_block_is_closed_in_another_thread(world: World) -> None:
    a = world.stream(FIRST)
    next(a)
    in_thread(a.close)  # type: ignore[attr-defined]
    assert world.is_untouched()


def test_block_is_opened_in_another_thread(world: World) -> None:
    a = world.steered(FIRST)
    in_thread(a.__enter__)
    assert same(world.logits(), world.plain)
    a.__exit__(None, None, None)


def test_block_is_closed_in_another_task(world: World) -> None:
    async def main() -> None:
        block = world.steered(FIRST)

        async def enter() -> None:
            block.__enter__()
            assert same(world.logits(), world.first)

        await asyncio.create_task(enter())
        assert same(world.logits(), world.plain)
        block.__exit__(None, None, None)

    asyncio.run(main())


def test_garbage_collection_closes_a_generators_block(world: World) -> None:
    a = world.stream(FIRST)
    next(a)
    del a
    assert world.is_untouched()
    cycle: list[Any] = [world.stream(FIRST)]
    cycle.append(cycle)
    next(cycle[0])
    del cycle
    in_thread(gc.collect)
    assert world.is_untouched()


def test_garbage_collection_closes_a_block_while_another_opens(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = world.stream(FIRST)
    next(a)
    plain_intervene = residual.intervene

    def intervene(*args: Any) -> None:
        a.close()  # type: ignore[attr-defined]
        plain_intervene(*args)

    monkeypatch.setattr(steer, "intervene", intervene)
    with world.steered(SECOND):
        assert same(world.logits(), world.second)
        assert world.hooks == 5  # two around each of two decoders, one at the layer


def test_block_that_nobody_can_close_is_closed(world: World) -> None:
    block = world.steered(FIRST)
    block.__enter__()
    assert same(world.logits(), world.first)
    del block
    assert world.is_untouched()


def test_block_is_entered_once_at_a_time(world: World) -> None:
    block = world.steered(FIRST)
    with block:
        with pytest.raises(EditError, match="open already"):
            block.__enter__()
        assert same(world.logits(), world.first)
    with block as receipt:
        world.logits()
    assert receipt.steps == 1


# --- generators


def test_suspended_generator_does_not_steer_its_caller(world: World) -> None:
    with closing(world.stream(FIRST)) as a:  # type: ignore[type-var]
        assert same(next(a), world.first)
        assert same(world.logits(), world.plain)
        assert not is_edited(world.lm)
        assert same(next(a), world.first)
        with world.steered(SECOND):
            assert same(world.logits(), world.second)


def test_delegating_generator_does_not_steer_its_caller(world: World) -> None:
    def outer() -> Iterator[Tensor]:
        yield from world.stream(FIRST)

    def holding() -> Iterator[Tensor]:
        with world.steered(FIRST):
            yield from (world.logits() for _ in range(2))

    for generator in (outer(), holding()):
        assert same(next(generator), world.first)
        assert same(world.logits(), world.plain)
        assert same(next(generator), world.first)
        generator.close()  # type: ignore[attr-defined]


def test_generator_is_steered_wherever_it_is_advanced(world: World) -> None:
    """Servers advance a generator in a pool of threads, each time in a new copy of a context."""
    a = world.stream(FIRST)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(4):
            assert same(pool.submit(copy_context().run, next, a).result(), world.first)
            assert same(pool.submit(world.logits).result(), world.plain)
    a.close()  # type: ignore[attr-defined]


def test_context_manager_written_as_a_generator_steers_its_caller(world: World) -> None:
    @contextmanager
    def inner() -> Iterator[None]:
        with world.steered(FIRST):
            yield

    @contextmanager
    def outer() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(inner())
            yield

    with outer():
        assert same(world.logits(), world.first)

    def stream() -> Iterator[Tensor]:
        with outer():
            yield world.logits()
            yield world.logits()

    a = stream()
    assert same(next(a), world.first)
    assert same(world.logits(), world.plain)
    assert same(next(a), world.first)
    a.close()  # type: ignore[attr-defined]


# --- tasks


def test_tasks_see_their_own_edits(world: World) -> None:
    async def task(edits: list[Edit]) -> list[Tensor]:
        with world.steered(edits):
            seen = []
            for _ in range(2):
                await asyncio.sleep(0)
                seen += [world.logits(), await asyncio.to_thread(world.logits)]
            return seen

    async def main() -> None:
        tasks = [asyncio.create_task(task(edits)) for edits in (FIRST, SECOND)]
        await asyncio.sleep(0)
        assert same(world.logits(), world.plain)
        first, second = await asyncio.gather(*tasks)
        assert all(same(seen, world.first) for seen in first)
        assert all(same(seen, world.second) for seen in second)

    asyncio.run(main())


def test_async_generator_steers_what_it_awaits_and_not_its_caller(world: World) -> None:
    async def main() -> None:
        a, b = world.astream(FIRST), world.astream(SECOND)
        for _ in range(2):
            assert same(await anext(a), world.first)
            assert same(world.logits(), world.plain)
            assert same(await asyncio.to_thread(world.logits), world.plain)
            assert same(await anext(b), world.second)
        await a.aclose()  # type: ignore[attr-defined]
        # Left to the event loop, which closes it in another task.
        del b

    asyncio.run(main())


def test_async_context_manager_steers_its_task(world: World) -> None:
    @asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        with world.steered(FIRST):
            await asyncio.sleep(0)
            yield

    async def main() -> None:
        async with opened():
            await asyncio.sleep(0)
            assert same(world.logits(), world.first)

    asyncio.run(main())


# --- interrupts


def run_interrupted(call: Callable[[], Any], at: int) -> bool:
    """Run it with a KeyboardInterrupt at the n-th line of what opens and closes blocks.

    Returns whether there were that many lines.
    """
    files = {module.__file__ for module in (steer, contexts, residual)}
    lines = 0

    def trace(frame: FrameType, event: str, _arg: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename not in files:
            return None
        # Python interrupts no lock between being taken or released and the next instruction.
        takes_lock = ".lock:" in linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not takes_lock:
            lines += 1
            if lines == at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return lines >= at


@pytest.mark.slow
# Python reports an interrupt of `__del__`, and goes on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_leave_nothing_behind(world: World) -> None:
    def steer_once() -> None:
        with world.steered(FIRST):
            pass

    at = 1
    while run_interrupted(steer_once, at):
        assert not world.hooks, f"interrupted at line {at}"
        assert not steer._HOOKS
        at += 1
    assert at > 40
    assert world.is_untouched()


def test_pass_that_is_interrupted_leaves_nothing_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(steer.EditedPass, "change", interrupted)
    with suppress(KeyboardInterrupt):
        world.alone(FIRST)
    monkeypatch.undo()
    assert world.is_untouched()


def test_parameter_comes_back_after_an_interrupted_pass() -> None:
    linear = nn.Linear(2, 2)
    original = linear.weight

    def interrupted(*_args: Any) -> None:
        raise KeyboardInterrupt

    with suppress(KeyboardInterrupt), swap_parameter(linear, "weight", lambda weight: weight + 1):
        handle = linear.register_forward_pre_hook(interrupted)
        linear(torch.ones(1, 2))
    handle.remove()
    assert linear.weight is original
    assert not linear._forward_hooks
    assert not linear._forward_pre_hooks


# --- other threads


def test_other_threads_do_not_reach_a_capture(world: World) -> None:
    with capture(world.lm, [1]) as resid:
        in_thread(world.logits)
        assert not resid
        in_thread(lambda: generate(world.lm, "The cat", max_new_tokens=2))
        assert not resid
        world.logits()
        assert resid[1].shape[1] == IDS.shape[1]
