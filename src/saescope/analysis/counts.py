"""Count per prompt how often each feature fires, and average per set."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from saescope.errors import PromptError
from saescope.store.arrays import Bools, Floats, Ints
from saescope.store.runs import Run
from saescope.store.tables import LayerFeatures


def count_fires(run: Run, features: LayerFeatures, scored: Bools) -> "FiringCounts":
    """Count one layer's firings on scored positions; features that never fire are left out."""
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

    `hits[p, f]`: scored positions of prompt p on which feature f fires, (prompts, features;
    sparse). `n[p]`: scored positions of prompt p. `features` holds the id of each column, `labels`
    (prompts,) the index of each prompt's set.
    """

    features: Ints
    hits: Any
    n: Ints
    labels: Ints
    n_sets: int

    def of_prompts(self, selected: Bools) -> "FiringCounts":
        """Return the counts of the selected prompts that have a scored position."""
        kept = selected & (self.n > 0)
        return FiringCounts(
            self.features, self.hits[kept], self.n[kept], self.labels[kept], self.n_sets
        )

    def of_features(self, columns: Bools | Ints) -> "FiringCounts":
        """Return the counts of some features."""
        hits = self.hits[:, columns]
        return FiringCounts(self.features[columns], hits, self.n, self.labels, self.n_sets)

    @property
    def membership(self) -> Floats:
        """One-hot set of each prompt, (sets, prompts)."""
        return np.asarray(self.labels == np.arange(self.n_sets)[:, None], np.float64)

    @property
    def prompts_per_set(self) -> Ints:
        """Number of prompts of each set, (sets,)."""
        return np.bincount(self.labels, minlength=self.n_sets)

    def rates(self) -> Floats:
        """Return the share of scored positions on which each feature fires, (sets, features)."""
        member = self.membership
        positions = np.maximum(member @ self.n, 1)
        return np.asarray((member @ self.hits) / positions[:, None])

    def prompt_rates(self) -> Floats:
        """Return the share of prompts on which each feature fires anywhere, (sets, features)."""
        member = self.membership
        prompts = np.maximum(member.sum(1), 1)
        return np.asarray((member @ (self.hits > 0)) / prompts[:, None])

    def prompts_fired(self) -> Ints:
        """Count the prompts on which each feature fires anywhere, (features,)."""
        return np.asarray((self.hits > 0).sum(axis=0)).reshape(-1)

    def fires_anywhere(self) -> Bools:
        """Return whether a feature fires on any scored position, (prompts, features)."""
        return np.asarray((self.hits > 0).toarray())


def fires_per_prompt(run: Run, features: LayerFeatures, scored: Bools, ids: Ints) -> Ints:
    """Count the scored positions on which some features fire, (prompts, features)."""
    columns = []
    for feature in ids.tolist():
        fires = features.fires(feature) & scored
        columns.append(np.bincount(run.token_prompt[fires], minlength=len(run.prompts)))
    return np.stack(columns, axis=1)


def mean_acts(run: Run, features: LayerFeatures, scored: Bools, present: Ints) -> Floats:
    """Average the activation over scored positions where it is positive, (sets, features)."""
    counted = scored[features.token]
    set_index = run.set_of_token[features.token[counted]]
    column = np.searchsorted(present, features.ids[counted])
    shape = (len(run.sets), len(present))
    cell = set_index * len(present) + column
    sums = np.bincount(cell, weights=features.acts[counted], minlength=shape[0] * shape[1])
    fired = np.bincount(cell, minlength=shape[0] * shape[1])
    return np.asarray(sums / np.maximum(fired, 1)).reshape(shape)


def refuse_unscored(run: Run, counts: FiringCounts) -> None:
    """Raise PromptError for a set without a scored position."""
    for i, name in enumerate(run.sets):
        if counts.n[counts.labels == i].sum() == 0:
            raise PromptError(
                f"set {name!r} has no scored position (position 0 and sinks do not count): "
                "use prompts of at least two tokens, or set keep_pos0=True"
            )
