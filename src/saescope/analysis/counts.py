"""Firings counted per prompt: where every question about prompt sets starts."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from saescope.errors import PromptError
from saescope.store.arrays import Bools, Floats, Ints
from saescope.store.runs import Run
from saescope.store.tables import LayerFeatures


def count_fires(run: Run, features: LayerFeatures, scored: Bools) -> "FiringCounts":
    """One layer's firings over the scored positions, of the features that fire at all."""
    counted = scored[features.token]
    prompt = run.token_prompt[features.token[counted]]
    present, column = np.unique(features.ids[counted], return_inverse=True)
    ones = np.ones(len(prompt), np.int32)
    shape = (len(run.prompts), len(present))
    hits = sparse.coo_array((ones, (prompt, column)), shape).tocsr()
    n = np.bincount(run.token_prompt[scored], minlength=len(run.prompts))
    return FiringCounts(present, hits, n, run.set_of_prompt, len(run.sets))


@dataclass(frozen=True)
class FiringCounts:
    """Firings per prompt.

    `hits` (prompts, features; sparse) of `n` (prompts,) scored positions fire; `features` are the
    ids of the columns, `labels` (prompts,) the index of each prompt's set.
    """

    features: Ints
    hits: Any
    n: Ints
    labels: Ints
    n_sets: int

    def of_prompts(self, rows: Bools) -> "FiringCounts":
        """Some of the prompts, without those that have no scored position."""
        rows = rows & (self.n > 0)
        return FiringCounts(
            self.features, self.hits[rows], self.n[rows], self.labels[rows], self.n_sets
        )

    def of_features(self, columns: Bools | Ints) -> "FiringCounts":
        """Some of the features."""
        hits = self.hits[:, columns]
        return FiringCounts(self.features[columns], hits, self.n, self.labels, self.n_sets)

    @property
    def membership(self) -> Floats:
        """Which set each prompt is in, (sets, prompts), as 0 and 1."""
        return np.asarray(self.labels == np.arange(self.n_sets)[:, None], np.float64)

    @property
    def prompts_per_set(self) -> Ints:
        """Number of prompts of each set, (sets,)."""
        return np.bincount(self.labels, minlength=self.n_sets)

    def rates(self) -> Floats:
        """Share of scored positions that fire, (sets, features)."""
        member = self.membership
        positions = np.maximum(member @ self.n, 1)
        return np.asarray((member @ self.hits) / positions[:, None])

    def prompt_rates(self) -> Floats:
        """Share of prompts that fire at all, (sets, features)."""
        member = self.membership
        prompts = np.maximum(member.sum(1), 1)
        return np.asarray((member @ (self.hits > 0)) / prompts[:, None])

    def prompts_fired(self) -> Ints:
        """Number of prompts on which each feature fires at all, (features,)."""
        return np.asarray((self.hits > 0).sum(axis=0)).reshape(-1)

    def fires(self) -> Bools:
        """Whether each feature fires on any scored position of each prompt, (prompts, features)."""
        return np.asarray((self.hits > 0).toarray())


def fires_per_prompt(run: Run, features: LayerFeatures, scored: Bools, ids: Ints) -> Ints:
    """Scored positions on which each of some features fires, (prompts, features)."""
    columns = []
    for feature in ids.tolist():
        fires = features.fires(feature) & scored
        columns.append(np.bincount(run.token_prompt[fires], minlength=len(run.prompts)))
    return np.stack(columns, axis=1)


def mean_acts(run: Run, features: LayerFeatures, scored: Bools, present: Ints) -> Floats:
    """Mean activation over the scored positions where a feature fires, (sets, features)."""
    counted = scored[features.token]
    set_index = run.set_of_token[features.token[counted]]
    column = np.searchsorted(present, features.ids[counted])
    shape = (len(run.sets), len(present))
    cell = set_index * len(present) + column
    sums = np.bincount(cell, weights=features.acts[counted], minlength=shape[0] * shape[1])
    fired = np.bincount(cell, minlength=shape[0] * shape[1])
    return np.asarray(sums / np.maximum(fired, 1)).reshape(shape)


def refuse_unscored(run: Run, counts: FiringCounts) -> None:
    """Raises PromptError for a set without a scored position."""
    for i, name in enumerate(run.sets):
        if counts.n[counts.labels == i].sum() == 0:
            raise PromptError(
                f"set {name!r} has no scored position (position 0 and sinks do not count): "
                "use prompts of at least two tokens, or keep_pos0"
            )
