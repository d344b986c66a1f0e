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


def undisturbed(run: Callable[[], T]) -> T:
    """What `run` returns once it ran with the machine to itself; exits after many vain tries."""
    for _ in range(_TRIES):
        _wait()
        others = Others()
        result = run()
        if (share := others.share()) < _LIMIT:
            return result
        print(f"not counted: others used {share:.0%} of the cores meanwhile", file=sys.stderr, flush=True)
    raise SystemExit("the machine is too busy to measure anything")


def _wait() -> None:
    """Return once others have left the machine alone for three seconds."""
    while True:
        others = Others()
        time.sleep(_SAMPLE_SECONDS)
        if others.share() < _LIMIT:
            return


def _busy() -> float:
    """Seconds that all cores have been at work since the machine started."""
    user, nice, system, _idle, _wait, *interrupts = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
