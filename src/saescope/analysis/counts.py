"""Firings counted by prompt: what every question about prompt sets starts from."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from saescope.analysis.stats import Bools, Floats, Ints
from saescope.errors import PromptError
from saescope.store.runs import Run
from saescope.store.tables import LayerFeatures


@dataclass(frozen=True)
class Counts:
    """Firings by prompt: `hits` (prompts × features, sparse) of `n` scored positions each, and each prompt's set."""

    features: Ints
    hits: Any
    n: Ints
    labels: Ints
    n_sets: int

    def part(self, rows: Bools) -> "Counts":
        """Some of the prompts, without those that have no scored position."""
        rows = rows & (self.n > 0)
        return Counts(self.features, self.hits[rows], self.n[rows], self.labels[rows], self.n_sets)

    def columns(self, which: Bools | Ints) -> "Counts":
        """Some of the features."""
        return Counts(self.features[which], self.hits[:, which], self.n, self.labels, self.n_sets)

    @property
    def member(self) -> Floats:
        """Which set (row) each prompt (column) is in, as 0 and 1."""
        return np.asarray(self.labels == np.arange(self.n_sets)[:, None], np.float64)

    def rates(self) -> Floats:
        """Share of scored positions that fire, by set and feature."""
        return np.asarray((self.member @ self.hits) / np.maximum(self.member @ self.n, 1)[:, None])

    def prompts_fired(self) -> Ints:
        """Number of prompts on which each feature fires at all."""
        return np.asarray((self.hits > 0).sum(axis=0)).reshape(-1)

    def prompt_rates(self) -> Floats:
        """Share of prompts that fire at all, by set and feature."""
        return np.asarray(
            (self.member @ (self.hits > 0)) / np.maximum(self.member.sum(1), 1)[:, None]
        )


def count_fires(run: Run, features: LayerFeatures, scored: Bools) -> Counts:
    """One layer's firings over the scored positions, of the features that fire at all."""
    counted = scored[features.token]
    prompt = run.token_prompt[features.token[counted]]
    present, column = np.unique(features.ids[counted], return_inverse=True)
    shape = (len(run.prompts), len(present))
    hits = sparse.coo_array((np.ones(len(prompt), np.int32), (prompt, column)), shape).tocsr()
    n = np.bincount(run.token_prompt[scored], minlength=len(run.prompts))
    return Counts(present, hits, n, run.set_of_prompt, len(run.sets))


def fires_by_prompt(run: Run, features: LayerFeatures, scored: Bools, ids: Ints) -> Ints:
    """Scored positions on which each of some features fires, (prompts, features)."""
    columns = []
    for feature in ids.tolist():
        fires = features.fires(feature) & scored
        columns.append(np.bincount(run.token_prompt[fires], minlength=len(run.prompts)))
    return np.stack(columns, axis=1)


def refuse_unscored(run: Run, counts: Counts) -> None:
    """Raises PromptError for a set of which no position counts."""
    for i, name in enumerate(run.sets):
        if counts.n[counts.labels == i].sum() == 0:
            raise PromptError(
                f"set {name!r} has no scored position (position 0 and sinks do not count): "
                "use prompts of at least two tokens, or --keep-pos0"
            )


def mean_acts(run: Run, features: LayerFeatures, scored: Bools, present: Ints) -> Floats:
    """Mean activation by set and feature over the scored positions where it fires."""
    counted = scored[features.token]
    group = run.set_of_prompt[run.token_prompt][features.token[counted]]
    cell = group * len(present) + np.searchsorted(present, features.ids[counted])
    size = len(run.sets) * len(present)
    sums = np.bincount(cell, weights=features.acts[counted], minlength=size)
    fired = np.maximum(np.bincount(cell, minlength=size), 1)
    return np.asarray(sums / fired).reshape(len(run.sets), len(present))
