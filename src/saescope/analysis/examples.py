"""The prompts on which one feature is strongest, with its activation on each of their tokens."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from saescope.analysis.stats import Bools, Floats
from saescope.errors import PromptError, RunError
from saescope.sources.catalog import Feature
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.table import Table


@dataclass(frozen=True)
class TokenAct:
    """One token: the feature's activation (0 where it does not fire), and what keeps the position from counting."""

    text: str
    pos: int
    act: float
    masked: str | None


@dataclass(frozen=True)
class Example:
    """One prompt, and the feature's largest activation on its scored positions."""

    prompt: str
    set: str
    strongest: float
    tokens: tuple[TokenAct, ...]


@final
@dataclass(frozen=True)
class Examples(Table):
    """A feature's strongest prompts, strongest first, and in how many it fires on a scored position at all."""

    run: str
    feature: Feature
    fired: int
    examples: tuple[Example, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        examples = [{**vars(e), "tokens": [dict(vars(t)) for t in e.tokens]} for e in self.examples]
        return {
            "feature": str(self.feature),
            "fired": self.fired,
            "examples": examples,
            "run": self.run,
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row a token."""
        return [
            {"prompt": e.prompt, "set": e.set, **vars(token)}
            for e in self.examples
            for token in e.tokens
        ]


def examples(run: Run, feature: Feature, masking: Masking | None = None, *, n: int = 5) -> Examples:
    """The n prompts, of any set, with the feature's largest activations on scored positions.

    Raises RunError for a feature that the run does not hold.
    """
    if n < 1:
        raise PromptError(f"n is {n}: ask for at least one example")
    run.check_layer(feature.layer)
    if not 0 <= feature.id < run.saes[feature.layer].d_sae:
        raise RunError(
            f"feature {feature} is none: layer {feature.layer} has {run.saes[feature.layer].d_sae} features"
        )
    stored = run.features(feature.layer)
    masking = masking or Masking()
    scored = masking.apply(run.token_pos, stored.norms).scored
    acts = stored.acts_of(feature.id).astype(np.float64)
    strongest = np.zeros(len(run.prompts))
    np.maximum.at(strongest, run.token_prompt[scored], acts[scored])
    fired = int((strongest > 0).sum())
    chosen = np.argsort(-strongest, kind="stable")[: min(n, fired)]
    of = _Acts(acts, scored, masking.candidates(run.token_pos))
    made = tuple(_example(run, int(p), float(strongest[p]), of) for p in chosen)
    return Examples(run=str(run.path), feature=feature, fired=fired, examples=made)


@dataclass(frozen=True)
class _Acts:
    """One feature over all tokens: its activations, which positions are scored, and which but sinks would be."""

    acts: Floats
    scored: Bools
    candidates: Bools

    def masked(self, row: int) -> str | None:
        """Why a token does not count; a first position over the limit is both, and is called a position 0."""
        return None if self.scored[row] else "sink" if self.candidates[row] else "position 0"


def _example(run: Run, prompt: int, strongest: float, of: _Acts) -> Example:
    rows = np.flatnonzero(run.token_prompt == prompt).tolist()
    tokens = tuple(
        TokenAct(run.token_text[row], int(run.token_pos[row]), float(of.acts[row]), of.masked(row))
        for row in rows
    )
    return Example(run.prompts[prompt].id, run.prompts[prompt].set, strongest, tokens)
