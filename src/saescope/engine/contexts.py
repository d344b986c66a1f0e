"""Values that `with` blocks hold open, and which of them apply to the code that runs now.

A ContextVar alone is not enough. A generator shares the context of its caller, so a block that it
holds while it is suspended would reach the caller; and a generator that is advanced from several
threads would lose its block at the second step. So a block also remembers the generator that
holds it, and applies only while that generator runs.
"""

import sys
import threading
from collections.abc import Callable
from contextvars import Context, ContextVar
from dis import opmap
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from types import FrameType
from typing import Generic, TypeVar, final

T = TypeVar("T")
R = TypeVar("R")

_GENERATORS = CO_GENERATOR | CO_ASYNC_GENERATOR
_AWAITS = 3  # the lowest bits of the argument of a RESUME that ends an `await`
_ENTERS = ("__enter__", "__aenter__")


@final
class OpenBlock(Generic[T]):
    """One `with` block: its value and the generator that holds it; neither once it is closed."""

    def __init__(self, value: T, holder: FrameType | None) -> None:
        self.value: T | None = value
        self.holder = holder

    def close(self) -> None:
        """Close the block for every context that knows it; a second time changes nothing."""
        self.value = None
        self.holder = None


@final
class OpenBlocks(Generic[T]):
    """The open blocks of one kind, in all contexts."""

    def __init__(self, name: str) -> None:
        self._open: tuple[OpenBlock[T], ...] = ()
        self._in_context: ContextVar[tuple[OpenBlock[T], ...]] = ContextVar(name, default=())
        self._ignored: ContextVar[bool] = ContextVar(f"{name} ignored", default=False)
        # Garbage collection may close a block while the same thread opens another.
        self.lock = threading.RLock()

    def open(self, block: OpenBlock[T]) -> None:
        """Open a block in this context, after those that are open already."""
        with self.lock:
            self._open = (*self._still_open(self._open), block)
        self._in_context.set((*self._still_open(self._in_context.get()), block))

    def close(self, block: OpenBlock[T]) -> None:
        """Close a block, from whatever context and in whatever order."""
        block.close()
        with self.lock:
            self._open = self._still_open(self._open)
        mine = self._in_context.get()
        if mine:
            self._in_context.set(self._still_open(mine))

    def everywhere(self) -> list[T]:
        """Return the values of all open blocks, whichever context they belong to."""
        return [value for block in self._open if (value := block.value) is not None]

    def here(self) -> list[T]:
        """Return the values of the open blocks that apply to the running code, in opening order.

        A block applies to the thread or task that opened it, and to threads and tasks that
        started with a copy of its context. A generator's block applies to what the generator
        calls, in whichever thread it is advanced, and to nothing while the generator is suspended.
        """
        if not self._open or self._ignored.get():
            return []
        in_context = self._in_context.get()
        running = _running_frames() if any(block.holder for block in self._open) else set()
        values = []
        for block in self._open:
            value, holder = block.value, block.holder
            if value is None:
                continue
            inherited = block in in_context and (holder is None or not _is_suspended(holder))
            if inherited or holder in running:
                values.append(value)
        return values

    def run_outside(self, call: Callable[[], R]) -> R:
        """Return what `call` returns where no block applies."""
        outside = Context()
        outside.run(self._ignored.set, True)
        return outside.run(call)

    @staticmethod
    def _still_open(blocks: tuple[OpenBlock[T], ...]) -> tuple[OpenBlock[T], ...]:
        return tuple(block for block in blocks if block.value is not None)


def holding_generator(depth: int = 1) -> FrameType | None:
    """Return the frame of the innermost generator that the caller runs in, sync or async, or None.

    A generator that `__enter__` advances is a context manager (`contextlib.contextmanager`):
    blocks that it opens are held by whoever enters it. A task has its own context: where its
    coroutine starts, the search ends.
    """
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        flags, caller = frame.f_code.co_flags, frame.f_back
        if flags & _GENERATORS and (caller is None or caller.f_code.co_name not in _ENTERS):
            return frame
        awaited = caller is not None and caller.f_code.co_flags & (CO_COROUTINE | _GENERATORS)
        if flags & CO_COROUTINE and not awaited:
            return None
        frame = caller
    return None


def _running_frames() -> set[FrameType | None]:
    """Return the frames of all functions that this thread is in."""
    frames: set[FrameType | None] = set()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        frames.add(frame)
        frame = frame.f_back
    return frames


def _is_suspended(generator: FrameType) -> bool:
    """Whether a generator has yielded to its caller; one that runs, awaits or has ended has not.

    A generator stops at YIELD_VALUE and continues at the RESUME after it, whose argument says
    whether it waits at a `yield` or at an `await`. Only async generators do the latter.
    """
    code, position = generator.f_code.co_code, generator.f_lasti
    if position >= 0 and code[position] == opmap["YIELD_VALUE"]:
        position += 2
    if position < 0 or code[position] != opmap["RESUME"]:
        return False
    return code[position + 1] & _AWAITS in (1, 2)
