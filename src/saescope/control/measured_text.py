"""How much neutral text a written checkpoint or export is measured on. No torch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar, final, get_args

from saescope.errors import ArgumentError, Interrupted
from saescope.sources.prompts import Prompt
from saescope.sources.splits import spread

Measure = Literal["full", "sample", "none"]
SAMPLE_TEXTS = 32
Figures = TypeVar("Figures")


def extent(measure: Measure | bool) -> Measure:
    """Return how much is measured; True is full, False none. Raises ArgumentError for others."""
    if isinstance(measure, bool):
        return "full" if measure else "none"
    if measure not in get_args(Measure):
        choices = ", ".join(get_args(Measure))
        raise ArgumentError("measure", f"must be one of {choices}, got {measure!r}")
    return measure


def measured_part(texts: Sequence[Prompt], measure: Measure | bool) -> list[Prompt]:
    """Return the texts to measure on."""
    if extent(measure) == "none":
        return []
    return spread(texts, SAMPLE_TEXTS) if extent(measure) == "sample" else list(texts)


@final
class Measuring:
    """Measures what is written already: an interrupt then keeps it, and is raised once it is out.

    >>> measuring = Measuring()
    >>> measuring.run(lambda: {"mean": 0.5})
    {'mean': 0.5}
    >>> measuring.interrupted
    False
    """

    def __init__(self) -> None:
        self.interrupted = False

    def run(self, measure: Callable[[], Figures]) -> Figures | None:
        """Return what `measure` returns; None if it is interrupted."""
        try:
            return measure()
        except KeyboardInterrupt:
            self.interrupted = True
            return None

    def end(self, out: Path) -> None:
        """Raise Interrupted if measuring was interrupted; `out` is in its place by now."""
        if self.interrupted:
            raise Interrupted(
                f"{out} is complete, its distances are not measured",
                onward="to measure them, remove it and run",
            )
