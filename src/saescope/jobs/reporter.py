"""How a job tells its caller what it is doing. Jobs print nothing themselves."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, final, runtime_checkable

from saescope.errors import Interrupted

Advance = Callable[[int, int], None]


@runtime_checkable
class Reporter(Protocol):
    """Receives notes and progress while a job runs."""

    def note(self, text: str) -> None:
        """Show one line to the user."""

    def progress(
        self, label: str, unit: str = "tokens", task: str = ""
    ) -> AbstractContextManager[Advance]:
        """Follow work that may take long; call the result with the amount done and the total.

        `task` says in words what will be done. Speed is measured from the first call on, since
        an interrupted job may have finished some before.
        """


@final
class _Silent:
    def note(self, text: str) -> None:
        """Drop the note."""

    def progress(
        self, label: str, unit: str = "tokens", task: str = ""
    ) -> AbstractContextManager[Advance]:
        """Count nothing."""
        return nullcontext(_ignore)


def _ignore(_done: int, _total: int) -> None:
    return None


SILENT: Reporter = _Silent()


@contextmanager
def keeping(reporter: Reporter, label: str, unit: str, task: str) -> Iterator[Advance]:
    """Follow work whose finished part is kept; raises Interrupted with how much that is."""
    finished = (0, 0)
    with reporter.progress(label, unit, task) as advance:

        def count(done: int, total: int) -> None:
            nonlocal finished
            finished = (done, total)
            advance(done, total)

        try:
            yield count
        except KeyboardInterrupt as error:
            done, total = finished
            kept = f"{done:,} of {total:,} {unit} are kept" if done else "nothing is finished yet"
            raise Interrupted(kept) from error
