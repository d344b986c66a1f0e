"""Tokens of prompts with their residual norms: what a profile reads, from a run or in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from saescope.sources.prompts import Prompt
from saescope.store.arrays import Bools, Indices
from saescope.store.masking import Magnitudes, Norms
from saescope.store.runs import Run


@final
@dataclass(frozen=True)
class MeasuredNorms:
    """Tokens and residual norms measured without an SAE. Nothing is stored on disk."""

    prompts: tuple[Prompt, ...]
    lengths: Sequence[int]
    "Number of tokens of each prompt."

    token_text: list[str]
    is_text: Bools
    "For each token, whether it is text and not a special token such as a BOS, (tokens,)."

    magnitudes_of_layer: Mapping[int, Magnitudes]
    path: None = None
    sinks_across_layers: bool = True

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers measured, ascending."""
        return tuple(sorted(self.magnitudes_of_layer))

    def norms(self, layer: int) -> Norms:
        """Residual norms after this layer, (tokens,)."""
        return self.magnitudes(layer).norms

    def magnitudes(self, layer: int) -> Magnitudes:
        """How large the residuals after this layer are."""
        return self.magnitudes_of_layer[layer]

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """Names of the sets in order."""
        return tuple(dict.fromkeys(prompt.set for prompt in self.prompts))

    @cached_property
    def set_of_prompt(self) -> Indices:
        """For each prompt, the index of its set in `sets`, (prompts,)."""
        return np.array([self.sets.index(prompt.set) for prompt in self.prompts], np.intp)

    @cached_property
    def token_prompt(self) -> Indices:
        """For each token, the index of its prompt, (tokens,)."""
        return np.repeat(np.arange(len(self.prompts)), self.lengths)

    @cached_property
    def set_of_token(self) -> Indices:
        """For each token, the index of its set in `sets`, (tokens,)."""
        return np.asarray(self.set_of_prompt[self.token_prompt])

    @cached_property
    def token_pos(self) -> Indices:
        """Position of each token in its prompt, (tokens,)."""
        return np.concatenate([np.arange(length) for length in self.lengths])


TokenNorms = Run | MeasuredNorms
"What a profile is computed from."
