"""Which positions count in statistics.

Position 0 and sinks (norms far above the layer's median) lie outside what an SAE was trained on
and would dominate every mean. Both are left out by default, and results report how many were.

The median is the layer's, over the whole run. `PromptResids` in tables.py are made batch by batch
and use each prompt's own median instead.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from saescope.arguments import Count, Ratio, check_arguments
from saescope.store.arrays import Bools, Ints

Norms = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Masking:
    """Which positions of a prompt count in statistics.

    >>> import numpy as np
    >>> import saescope as ss
    >>> pos = np.array([0, 1, 2, 0, 1, 2])
    >>> norms = np.array([90.0, 1.0, 1.1, 80.0, 50.0, 0.9])
    >>> ss.Masking().apply(pos, norms).scored.tolist()
    [False, True, True, False, False, True]
    """

    keep_pos0: bool = False
    "Count position 0 too."

    keep_sinks: bool = False
    "Count sinks too."

    sink_ratio: Ratio = 10.0
    "A position is a sink if its norm exceeds this many times its layer's median."

    last: Count | None = None
    "Count only this many positions at the end of each prompt. Default: all."

    def check(self) -> None:
        """Raise ArgumentError for invalid values."""
        check_arguments(self)

    def apply(self, pos: Ints, norms: Norms) -> "Positions":
        """Return the sinks and the scored positions of one layer's tokens (tokens,)."""
        candidates = self.candidates(pos)
        sinks = np.zeros(len(pos), bool)
        median = self.median(pos, norms)
        if median is not None:
            sinks = norms > self.sink_ratio * median
        in_scope = candidates
        if self.last is not None:
            in_scope = candidates & (_tokens_after(pos) < self.last)
        scored = in_scope if self.keep_sinks else in_scope & ~sinks
        return Positions(
            sinks=sinks,
            scored=scored,
            masked_pos0=int((~candidates).sum()),
            masked_sinks=int((in_scope & ~scored).sum()),
        )

    def candidates(self, pos: Ints) -> Bools:
        """Return the positions eligible before sink removal, (tokens,)."""
        if self.keep_pos0:
            return np.ones(len(pos), bool)
        return np.asarray(pos > 0)

    def median(self, pos: Ints, norms: Norms) -> float | None:
        """Return the layer's lower median norm; None if no position is eligible.

        With two tokens, a sink would raise an averaged median and escape detection.
        """
        ascending = np.sort(norms[self.candidates(pos)])
        if not len(ascending):
            return None
        return float(ascending[(len(ascending) - 1) // 2])


class MaskedCounts(NamedTuple):
    """How many positions each rule left out."""

    pos0: int
    sinks: int


@dataclass(frozen=True)
class Positions:
    """One layer's tokens: which are sinks, which are scored, and how many each rule left out."""

    sinks: Bools
    scored: Bools
    masked_pos0: int
    masked_sinks: int

    @property
    def masked(self) -> MaskedCounts:
        """How many positions each rule left out."""
        return MaskedCounts(self.masked_pos0, self.masked_sinks)


def _tokens_after(pos: Ints) -> Ints:
    """Count the tokens that follow each token in its prompt; prompts begin at position 0."""
    starts = np.flatnonzero(pos == 0)
    lengths = np.diff(np.append(starts, len(pos)))
    return np.asarray(np.repeat(lengths, lengths) - 1 - pos)
