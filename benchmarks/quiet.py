"""Measure only while the machine is otherwise idle: disturbed runs are repeated."""

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_LIMIT = 0.1
_SAMPLE_SECONDS = 3.0
_TRIES = 12


def undisturbed(run: Callable[[], T], *, busy: bool = False) -> tuple[T, float]:
    """The result of `run` on an idle machine, and the share of the cores that others used.

    With `busy`, the first run counts whatever else happens. Raises SystemExit after 12 disturbed
    runs.
    """
    if busy:
        return _with_share_of_others(run)
    for _ in range(_TRIES):
        _wait_until_idle()
        result, share = _with_share_of_others(run)
        if share < _LIMIT:
            return result, share
        _report(f"repeated: other processes used {share:.0%} of the cores")
    raise SystemExit(f"other processes disturbed {_TRIES} runs in a row: nothing was measured")


def _with_share_of_others(run: Callable[[], T]) -> tuple[T, float]:
    others = Others()
    result = run()
    return result, others.share()


def _wait_until_idle() -> None:
    """Return once other processes have left the machine alone for three seconds."""
    reported = False
    while True:
        others = Others()
        time.sleep(_SAMPLE_SECONDS)
        share = others.share()
        if share < _LIMIT:
            return
        if not reported:
            _report(f"waiting: other processes use {share:.0%} of the cores")
            reported = True


def _report(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class Others:
    """CPU use of all processes but our children, since this object was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._busy_before = _busy_seconds()
        self._children_before = _children_seconds()

    def share(self) -> float:
        """Their share of all cores: 0 for an idle machine, 1 for a fully used one."""
        busy = _busy_seconds() - self._busy_before
        children = _children_seconds() - self._children_before
        elapsed = time.monotonic() - self._start
        cores = os.cpu_count() or 1
        return max(0.0, (busy - children) / elapsed / cores)


def _busy_seconds() -> float:
    """CPU seconds of all cores since the machine started, without idle and I/O wait."""
    first_line = Path("/proc/stat").read_text().splitlines()[0]
    user, nice, system, _idle, _iowait, *interrupts = map(int, first_line.split()[1:9])
    ticks = user + nice + system + sum(interrupts)
    return ticks / os.sysconf("SC_CLK_TCK")


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
