"""Time functions in alternation within one process, so that a slow second affects all of them."""

import time
from collections.abc import Callable, Mapping


def time_alternating(
    functions: Mapping[str, Callable[[], object]], times: int, *, warm: bool = False
) -> dict[str, list[float]]:
    """Seconds of each function, `times` times; one uncounted round goes first unless `warm`."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    n_warmup = 0 if warm else 1
    for number in range(n_warmup + times):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            elapsed = time.perf_counter() - start
            if number >= n_warmup:
                seconds[name].append(elapsed)
    return seconds
