"""Which positions count in statistics.

Position 0 and sinks (residuals far larger than the layer's median) lie outside what an SAE was
trained on and would dominate every mean. Both are left out by default, and results report how many
were. This file has the rule of one layer; `run_positions.py` joins the layers of a run.

The median is the layer's, over the whole run. `PromptResids` in tables.py are made batch by batch
and use each prompt's own median instead, as steering does.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from saescope.arguments import Count, Ratio, check_arguments
from saescope.store.arrays import Bools, Ints

Norms = npt.NDArray[np.floating]
Peaks = npt.NDArray[np.floating]

# Measured on two real models and the embedded pair: docs/statistics.md, "How sinks are found".
SINK_RATIO = 10.0
MASSIVE_RATIO = 3.0
"Times the median, for residuals of which one coordinate holds more than `MASSIVE_PEAK`."
MASSIVE_PEAK = 0.5
"Share of the squared norm."
FIRST_LAYER = 0
"""Decides for no position: its residual is little more than the embedding, in which punctuation can
be as large as a sink."""


class Magnitudes(NamedTuple):
    """One layer's residual norms (tokens,) and how much of each its largest coordinate holds.

    `peaks` (tokens,) are shares of the squared norm; None if an earlier version measured the norms.
    """

    norms: Norms
    peaks: Peaks | None


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

    sink_ratio: Ratio = SINK_RATIO
    (
        "A position is a sink if its norm exceeds this many times its layer's median, or three "
        "tenths of that (at least 3 times) where one coordinate holds most of it."
    )

    last: Count | None = None
    "Count only this many positions at the end of each prompt. Default: all."

    def check(self) -> None:
        """Raise ArgumentError for invalid values."""
        check_arguments(self)

    def apply(self, pos: Ints, norms: Norms, peaks: Peaks | None = None) -> "Positions":
        """Return the sinks and the scored positions of one layer's tokens (tokens,) by itself."""
        return self.positions(pos, self.sinks(pos, Magnitudes(norms, peaks)))

    def sinks(self, pos: Ints, magnitudes: Magnitudes) -> Bools:
        """Return which tokens of one layer are sinks by that layer alone, (tokens,)."""
        median = self.median(pos, magnitudes.norms)
        if median is None:
            return np.zeros(len(pos), bool)
        limits = sink_limits(self.sink_ratio)
        is_sink = magnitudes.norms > limits.norm * median
        if magnitudes.peaks is not None:
            is_massive = magnitudes.peaks > MASSIVE_PEAK
            is_sink |= is_massive & (magnitudes.norms > limits.massive * median)
        return np.asarray(is_sink)

    def layer_sinks(self, layer: int, pos: Ints, magnitudes: Magnitudes) -> Bools:
        """Return which tokens a layer of a model shows as sinks; the first layer shows none."""
        if layer == FIRST_LAYER:
            return np.zeros(len(pos), bool)
        return self.sinks(pos, magnitudes)

    def positions(self, pos: Ints, sinks: Bools) -> "Positions":
        """Return the positions that count if these tokens are sinks."""
        candidates = self.candidates(pos)
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


class SinkLimits(NamedTuple):
    """Times the median norm: of any residual, and of one that a single coordinate dominates."""

    norm: float
    massive: float


def sink_limits(ratio: float = SINK_RATIO) -> SinkLimits:
    """Return what a sink's norm exceeds, in medians.

    A higher ratio raises both limits. A lower one does not lower the second, because in some models
    one coordinate dominates every residual.

    >>> sink_limits(4.0)
    SinkLimits(norm=4.0, massive=3.0)
    >>> sink_limits(200.0)
    SinkLimits(norm=200.0, massive=60.0)
    """
    return SinkLimits(ratio, max(MASSIVE_RATIO, ratio * MASSIVE_RATIO / SINK_RATIO))


class MaskedCounts(NamedTuple):
    """How many positions each rule left out."""

    pos0: int
    sinks: int


@dataclass(frozen=True)
class Positions:
    """Tokens: which are sinks, which are scored, and how many each rule left out."""

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
