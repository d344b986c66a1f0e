"""How a job tells its caller what it is doing. Jobs print nothing themselves."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, final, runtime_checkable

Advance = Callable[[int, int], None]


@runtime_checkable
class Reporter(Protocol):
    """Receives notes and progress while a job runs."""

    def note(self, text: str) -> None:
        """Show one line to the user."""

    def progress(self, label: str, unit: str = "tokens") -> AbstractContextManager[Advance]:
        """Open a progress bar; call the result with the amount done and the total."""


@final
class _Silent:
    def note(self, text: str) -> None:
        """Drop the note."""

    def progress(self, label: str, unit: str = "tokens") -> AbstractContextManager[Advance]:
        """Count nothing."""
        return nullcontext(_ignore)


def _ignore(_done: int, _total: int) -> None:
    return None


SILENT: Reporter = _Silent()
