"""Which positions count in statistics.

Position 0 and sinks (norms far over the layer's median) lie outside what an SAE was trained on, and would dominate
every mean; both are left out unless asked for, and every result says how many were.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from saescope.errors import PromptError


@dataclass(frozen=True)
class Masking:
    """Which positions of a prompt count in statistics."""

    keep_pos0: bool = False
    "Count position 0 too."

    keep_sinks: bool = False
    "Count sinks too."

    sink_ratio: float = 10.0
    "A position is a sink if its norm exceeds this many medians of its layer."

    last: int | None = None
    "Count only this many positions at the end of each prompt. Default: all."

    def check(self) -> None:
        """Raises PromptError for a value that leaves no position to count, or no median below a sink."""
        if not self.sink_ratio > 1:
            raise PromptError(f"sink_ratio must be above 1, the median, got {self.sink_ratio:g}")
        if self.last is not None and self.last < 1:
            raise PromptError(f"last must be at least 1, got {self.last}")

    def candidates(self, pos: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Positions that count before sinks are looked for."""
        return np.ones(len(pos), bool) if self.keep_pos0 else pos > 0

    def median(self, pos: npt.NDArray[np.integer], norms: npt.NDArray[np.floating]) -> float | None:
        """One layer's median norm, which sinks are measured by; None where no position counts.

        It is the lower median, so that one sink among two tokens does not hide itself.
        """
        among = np.sort(norms[self.candidates(pos)])
        return float(among[(len(among) - 1) // 2]) if len(among) else None

    def apply(self, pos: npt.NDArray[np.integer], norms: npt.NDArray[np.floating]) -> "Positions":
        """Find sinks among one layer's tokens, and which positions are scored."""
        candidates = self.candidates(pos)
        median = self.median(pos, norms)
        sinks = norms > (np.inf if median is None else self.sink_ratio * median)
        if self.last is not None:
            candidates = candidates & (_from_end(pos) < self.last)
        scored = candidates if self.keep_sinks else candidates & ~sinks
        return Positions(
            sinks=sinks,
            scored=scored,
            masked_pos0=int((~self.candidates(pos)).sum()),
            masked_sinks=int((candidates & ~scored).sum()),
        )


def _from_end(pos: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """How many positions of its prompt follow each one; prompts stand one after another, each from position 0."""
    starts = np.flatnonzero(pos == 0)
    lengths = np.diff(np.append(starts, len(pos)))
    return np.asarray(np.repeat(lengths, lengths) - 1 - pos)


@dataclass(frozen=True)
class Positions:
    """One layer's tokens: which are sinks, which are scored, and how many each rule left out."""

    sinks: npt.NDArray[np.bool_]
    scored: npt.NDArray[np.bool_]
    masked_pos0: int
    masked_sinks: int
