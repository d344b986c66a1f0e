"""Code of a user, such as a judge: it may end the program, print, hang or raise anything."""

import io
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from types import FrameType
from typing import Any, TypeVar, final

from saescope.errors import JudgeError, SaescopeError

T = TypeVar("T")


@contextmanager
def foreign_code(what: str, seconds: float) -> Iterator[None]:
    """Within the context, code of a user runs: what it raises becomes a JudgeError, `what: reason`.

    What it prints goes to stderr, because stdout is for the result. It is stopped after this many
    seconds, except in threads other than the main one, which receive no signals.
    """
    try:
        with redirect_stdout(_Stderr()), _stopped_after(seconds):
            yield
    except (SaescopeError, KeyboardInterrupt):
        raise
    except SystemExit as error:
        raise JudgeError(f"{what}: it ended the program, exit({error.code!r})") from error
    except BaseException as error:  # the user's code may raise anything
        lines = str(error).strip().splitlines()
        reason = ": ".join([type(error).__name__, *lines[:1]])
        raise JudgeError(f"{what}: {reason}") from error


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what a call returns; raises TimeoutError if it takes longer.

    For calls that wait for bytes: a timeout of a socket starts anew with each byte that comes.
    """
    results: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put((True, call()))
        except BaseException as error:
            results.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        done, result = results.get(timeout=seconds)
    except queue.Empty as error:
        raise TimeoutError(f"no whole answer within {seconds:g} s") from error
    if not done:
        try:
            raise result
        finally:
            del result  # else error and frame would hold each other, and an open socket with them
    value: T = result
    return value


@final
class _Stderr(io.TextIOBase):
    """Stderr under another name, which closing does not close."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)


@contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"no answer within {seconds:g} s")

    started = time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    waiting, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        # An alarm that somebody else had set goes on.
        left = max(waiting - (time.monotonic() - started), 0.001) if waiting else 0
        signal.setitimer(signal.ITIMER_REAL, left, interval)
