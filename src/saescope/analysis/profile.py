"""Tokens and norms of prompt sets: token efficiency, position 0 against the rest, sinks, leading-token artefacts."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from saescope.analysis.table import Table
from saescope.store.masking import Masking
from saescope.store.runs import Run

LEADING_SHARE = 0.5
_LEAST_PROMPTS = 3


@dataclass(frozen=True)
class LayerNorms:
    """One set's residual norms after one layer; later positions leave sinks out, and `sinks` counts those."""

    pos0_norm_mean: float
    pos0_norm_median: float
    later_norm_mean: float | None
    later_norm_median: float | None
    sinks: int


@dataclass(frozen=True)
class SetProfile:
    """One set: its tokens, how many a prompt and against the leanest set, and its norms by layer."""

    prompts: int
    tokens: int
    tokens_per_prompt: float
    ratio: float
    layers: dict[int, LayerNorms]


@final
@dataclass(frozen=True)
class Profile(Table):
    """The answer to `profile`."""

    run: str
    sets: dict[str, SetProfile]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope profile`."""
        return {
            "sets": {
                name: {**vars(s), "layers": {str(n): vars(norms) for n, norms in s.layers.items()}}
                for name, s in self.sets.items()
            },
            "warnings": self.warnings,
            "run": self.run,
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row a set and layer."""
        return [
            {
                "set": name,
                **{key: value for key, value in vars(s).items() if key != "layers"},
                "layer": n,
                **vars(norms),
            }
            for name, s in self.sets.items()
            for n, norms in s.layers.items()
        ]


def profile(run: Run, masking: Masking | None = None) -> Profile:
    """Tokens and norms of every set of a run."""
    masking = masking or Masking()
    set_of_token = run.set_of_prompt[run.token_prompt]
    tokens = np.bincount(set_of_token, minlength=len(run.sets))
    prompts = np.bincount(run.set_of_prompt, minlength=len(run.sets))
    per_prompt = tokens / prompts
    norms: dict[str, dict[int, LayerNorms]] = {name: {} for name in run.sets}
    for layer in run.layers:
        values = run.features(layer).norms
        sinks = masking.apply(run.token_pos, values).sinks
        for i, name in enumerate(run.sets):
            norms[name][layer] = _norms(run.token_pos, values, sinks, set_of_token == i)
    sets = {
        name: SetProfile(
            prompts=int(prompts[i]),
            tokens=int(tokens[i]),
            tokens_per_prompt=float(per_prompt[i]),
            ratio=float(per_prompt[i] / per_prompt.min()),
            layers=norms[name],
        )
        for i, name in enumerate(run.sets)
    }
    return Profile(run=str(run.path), sets=sets, warnings=leading_token_warnings(run))


def _norms(
    pos: npt.NDArray[np.integer[Any]],
    norms: npt.NDArray[np.float32],
    sinks: npt.NDArray[np.bool_],
    rows: npt.NDArray[np.bool_],
) -> LayerNorms:
    first = norms[rows & (pos == 0)].astype(np.float64)
    later = norms[rows & (pos > 0) & ~sinks].astype(np.float64)
    return LayerNorms(
        pos0_norm_mean=float(first.mean()),
        pos0_norm_median=float(np.median(first)),
        later_norm_mean=float(later.mean()) if len(later) else None,
        later_norm_median=float(np.median(later)) if len(later) else None,
        sinks=int((rows & (pos > 0) & sinks).sum()),
    )


def leading_token_warnings(run: Run) -> list[str]:
    """A line for every set of which half the prompts or more begin with the same token.

    Position 0's norm then shows that token, not the set.
    """
    first = run.token_pos == 0
    lines = []
    for i, name in enumerate(run.sets):
        rows = np.flatnonzero(first & (run.set_of_prompt[run.token_prompt] == i))
        (token, count), *_ = Counter(run.token_text[row] for row in rows).most_common(1)
        if count >= _LEAST_PROMPTS and count >= LEADING_SHARE * len(rows):
            lines.append(
                f"{name}: {count} of {len(rows)} prompts begin with {token!r}: "
                "its position-0 norm shows that token, not the set"
            )
    return lines
