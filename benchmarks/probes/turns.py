"""Ways timed in turn in one process, so that a slow second of the machine meets all of them."""

import time
from collections.abc import Callable, Mapping


def in_turn(
    ways: Mapping[str, Callable[[], object]], times: int, *, warm: bool = False
) -> dict[str, list[float]]:
    """Seconds of each way, `times` times; unless they are `warm`, one turn goes before that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(times + (not warm)):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn or warm:
                seconds[name].append(time.perf_counter() - start)
    return seconds
