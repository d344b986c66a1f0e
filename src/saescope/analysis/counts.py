"""Count per prompt how often each feature fires, and average per set."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

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

    @cached_property
    def by_feature(self) -> Any:
        """The hits, stored feature by feature."""
        return self.hits.tocsc()

    @cached_property
    def prompts_of_sets(self) -> list[Ints]:
        """The rows of each set's prompts, ascending."""
        order = np.argsort(self.labels, kind="stable")
        return np.split(order, np.cumsum(self.prompts_per_set)[:-1])

    @cached_property
    def leaders(self) -> "Leaders":
        """The two sets in which each feature fires most."""
        return Leaders.of(self.rates())

    def _per_set(self, hits: Any) -> Floats:
        """Sum prompts (prompts, features; sparse) by set, (sets, features)."""
        prompts = np.arange(len(self.labels))
        ones = np.ones(len(prompts))
        shape = (self.n_sets, len(prompts))
        return np.asarray(
            (sparse.csr_array((ones, (self.labels, prompts)), shape) @ hits).toarray()
        )

    @property
    def prompts_per_set(self) -> Ints:
        """Number of prompts of each set, (sets,)."""
        return np.bincount(self.labels, minlength=self.n_sets)

    def rates(self) -> Floats:
        """Return the share of scored positions on which each feature fires, (sets, features)."""
        return self._rates

    @cached_property
    def _rates(self) -> Floats:
        n = np.bincount(self.labels, weights=self.n, minlength=self.n_sets)
        return np.asarray(self._per_set(self.hits) / np.maximum(n, 1)[:, None])

    def prompt_rates(self) -> Floats:
        """Return the share of prompts on which each feature fires anywhere, (sets, features)."""
        prompts = np.maximum(self.prompts_per_set, 1)
        return np.asarray(self._per_set(self.hits > 0) / prompts[:, None])

    def prompts_fired(self) -> Ints:
        """Count the prompts on which each feature fires anywhere, (features,)."""
        return np.asarray((self.hits > 0).sum(axis=0)).reshape(-1)

    def fires_anywhere(self) -> Bools:
        """Return whether a feature fires on any scored position, (prompts, features)."""
        return np.asarray((self.hits > 0).toarray())


class Leaders(NamedTuple):
    """For each feature the set with the highest rate, and the highest of all others, (features,).

    With them a set is compared with all others at once: the highest rate in any other set is
    `second_rate` for the first set, and `first_rate` for all others. Of equal sets, the one that
    comes first leads.
    """

    first: Ints
    first_rate: Floats
    second: Ints
    second_rate: Floats

    @classmethod
    def of(cls, rates: Floats) -> "Leaders":
        """Find them in rates (sets, features) of at least two sets."""
        features = np.arange(rates.shape[1])
        first = rates.argmax(axis=0)
        others = rates.copy()
        others[first, features] = -1.0
        second = others.argmax(axis=0)
        return cls(first, rates[first, features], second, others[second, features])

    def largest_other(self, sets: Ints | int, columns: Ints | slice = slice(None)) -> Floats:
        """Return the highest rate in any set but `sets`."""
        leads = self.first[columns] == sets
        return np.where(leads, self.second_rate[columns], self.first_rate[columns])

    def runner_up(self, sets: Ints, columns: Ints) -> Ints:
        """Return the set but `sets` that has this rate."""
        leads = self.first[columns] == sets
        return np.where(leads, self.second[columns], self.first[columns])


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
    positions = np.bincount(counts.labels, weights=counts.n, minlength=counts.n_sets)
    for name, n in zip(run.sets, positions.tolist(), strict=True):
        if n == 0:
            raise PromptError(
                f"set {name!r} has no scored position (position 0 and sinks do not count): "
                "use prompts of at least two tokens, or set keep_pos0=True"
            )
