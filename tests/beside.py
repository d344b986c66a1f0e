"""Work in other threads, which count as other writers."""

import threading
import time
from collections.abc import Callable
from typing import Any


def beside(work: Callable[[], Any]) -> list[Any]:
    """Run `work` in another thread; the list gets its result, or its error."""
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append(work())
        except BaseException as error:
            ended.append(error)

    threading.Thread(target=run, daemon=True).start()
    return ended


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
