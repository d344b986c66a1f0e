"""Which positions of a run count: a sink of one layer is a sink at all of them.

Sinks live across depth. A position can be 13 times the median norm in the middle of a model and
three times before the end, where its own layer would not show it. So each layer but the first shows
its sinks, and all of these are left out at every layer of the run. Layers that a question does not
ask about show theirs too: what counts does not depend on the question.

In runs of earlier versions each layer decides for itself, as it did when they were made.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import final

import numpy as np

from saescope.store.arrays import Bools, Ints
from saescope.store.masking import Magnitudes, Masking, Positions
from saescope.store.runs import Run
from saescope.store.token_norms import TokenNorms


def run_positions(tokens: TokenNorms, masking: Masking) -> "RunPositions":
    """Return which positions count; of a stored run they are kept for its next question."""
    if not isinstance(tokens, Run):
        return RunPositions(tokens, masking)
    if masking not in tokens.positions_by_masking:
        tokens.positions_by_masking[masking] = RunPositions(tokens, masking)
    positions: RunPositions = tokens.positions_by_masking[masking]
    return positions


def join_sinks(
    pos: Ints, layers: Iterable[tuple[int, Magnitudes]], masking: Masking
) -> dict[int, Ints]:
    """Return the tokens that each layer shows as sinks, ascending; together they are the sinks."""
    return {
        layer: np.flatnonzero(masking.layer_sinks(layer, pos, magnitudes))
        for layer, magnitudes in layers
    }


def any_layer(n_tokens: int, sinks_of_layers: Iterable[Ints]) -> Bools:
    """Return which tokens are sinks at one of the layers at least, (tokens,)."""
    sinks = np.zeros(n_tokens, bool)
    for tokens in sinks_of_layers:
        sinks[tokens] = True
    return sinks


def scored_in_prompts(layer: int, magnitudes: Magnitudes, lengths: Sequence[int]) -> Bools:
    """Return which tokens of prompts of these lengths count, by one prompt and layer alone.

    This is for what is computed before other layers, other prompts and the masking of a question
    are known: means of residuals. It is the default masking.
    """
    masking, scored, start = Masking(), [np.zeros(0, bool)], 0
    norms, peaks = magnitudes
    for length in lengths:
        of_prompt = slice(start, start + length)
        pos = np.arange(length)
        own = Magnitudes(norms[of_prompt], None if peaks is None else peaks[of_prompt])
        scored.append(masking.positions(pos, masking.layer_sinks(layer, pos, own)).scored)
        start += length
    return np.concatenate(scored)


@final
class RunPositions:
    """The positions of a run that count at each layer, and the layers that show each sink."""

    def __init__(self, tokens: TokenNorms, masking: Masking) -> None:
        self._tokens = tokens
        self._masking = masking
        self._sinks_of_layer: dict[int, Ints] = {}

    def __getitem__(self, layer: int) -> Positions:
        """Return the positions of one layer."""
        if self._tokens.sinks_across_layers:
            return self._everywhere
        return self._positions([layer])

    def shown_by(self, layer: int) -> Ints:
        """Return the tokens that are sinks by this layer's own residuals, ascending."""
        if layer not in self._sinks_of_layer:
            magnitudes = self._tokens.magnitudes(layer)
            if self._tokens.sinks_across_layers:
                shown = join_sinks(self._tokens.token_pos, [(layer, magnitudes)], self._masking)
                self._sinks_of_layer |= shown
            else:
                sinks = self._masking.sinks(self._tokens.token_pos, magnitudes)
                self._sinks_of_layer[layer] = np.flatnonzero(sinks)
        return self._sinks_of_layer[layer]

    @cached_property
    def _everywhere(self) -> Positions:
        return self._positions(self._tokens.layers)

    def _positions(self, layers: Iterable[int]) -> Positions:
        pos = self._tokens.token_pos
        sinks = any_layer(len(pos), map(self.shown_by, layers))
        return self._masking.positions(pos, sinks)
