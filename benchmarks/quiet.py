"""How much of the machine others use, so that a disturbed measurement can be told and taken again."""

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


class Others:
    """The share of all cores that went to processes other than our children, since this was made."""

    def __init__(self) -> None:
        self._busy, self._ours, self._time = _busy(), _children(), time.monotonic()

    def share(self) -> float:
        """0 for none of the machine, 1 for all of it."""
        others = (_busy() - self._busy) - (_children() - self._ours)
        return max(0.0, others / (time.monotonic() - self._time) / (os.cpu_count() or 1))


def undisturbed(run: Callable[[], T], *, busy: bool = False) -> tuple[T, float]:
    """What `run` returns once it ran with the machine to itself, and the share of the cores that others used.

    With `busy` the first try counts. Exits after many vain ones.
    """
    for _ in range(1 if busy else _TRIES):
        if not busy:
            _wait()
        others = Others()
        result = run()
        share = others.share()
        if busy or share < _LIMIT:
            return result, share
        print(
            f"not counted: others used {share:.0%} of the cores meanwhile",
            file=sys.stderr,
            flush=True,
        )
    raise SystemExit("the machine is too busy to measure anything")


def _wait() -> None:
    """Return once others have left the machine alone for three seconds."""
    told = False
    while True:
        others = Others()
        time.sleep(_SAMPLE_SECONDS)
        if (share := others.share()) < _LIMIT:
            return
        if not told:
            print(f"waiting: others use {share:.0%} of the cores", file=sys.stderr, flush=True)
            told = True


def _busy() -> float:
    """Seconds that all cores have been at work since the machine started."""
    user, nice, system, _idle, _wait, *interrupts = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
