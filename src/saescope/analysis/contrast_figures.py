"""The figures of the features that a contrast shows, for all sets of a layer at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saescope.analysis import stats
from saescope.analysis.counts import FiringCounts, Leaders
from saescope.analysis.headline import Headline
from saescope.analysis.pairs import max_pairwise_p
from saescope.analysis.rates import margin_intervals, rate_intervals
from saescope.analysis.search import SearchResult
from saescope.store.arrays import Floats, Ints


@dataclass(frozen=True)
class LayerEvidence:
    """One layer's firings in all, discovery and held-out prompts, and the search result."""

    counts: FiringCounts
    discovery: FiringCounts
    holdout: FiringCounts
    search_result: SearchResult
    mean_acts: Floats

    def shown(self, n_top: int) -> tuple[Ints, Ints]:
        """Return the best features of every set that fire in it: their sets, their columns.

        Features are ranked on discovery prompts, so held-out figures of the top features are not
        biased by selection.
        """
        rates = self.counts.rates()
        columns = []
        for i in range(self.counts.n_sets):
            ranked = np.argsort(-self._discovery_margins(i), kind="stable")[:n_top]
            columns.append(ranked[rates[i, ranked] > 0])
        sets = np.repeat(np.arange(len(columns)), [len(of_set) for of_set in columns])
        return sets, np.concatenate(columns)

    def headlines(self, headline: Headline) -> tuple[Ints, Ints]:
        """Return the sets that a headline has a feature for, and the columns of these features.

        Of the confirmed features with a headline's effect on held-out prompts, it is the best on
        discovery prompts.
        """
        sets, columns = np.nonzero(self.search_result.confirmed)
        rates = self.holdout.rates()[sets, columns]
        allowed = headline.allowed(rates, self.holdout.leaders.largest_other(sets, columns))
        sets, columns = sets[allowed], columns[allowed]
        present = np.unique(sets)
        best = []
        for i in present.tolist():
            of_set = columns[sets == i]
            best.append(of_set[np.argmax(self._discovery_margins(i)[of_set])])
        return present, np.array(best, np.int64)

    def _discovery_margins(self, i: int) -> Floats:
        rates = self.discovery.rates()[i]
        return np.asarray(rates - self.discovery.leaders.largest_other(i))

    def first_by_prompts(self) -> list[int]:
        """Return per set the column with the largest margin, which is how `detect` ranks.

        The margin is in the share of discovery prompts on which the feature fires.
        """
        rates = self.discovery.prompt_rates()
        second, largest = np.partition(rates, -2, axis=0)[-2:]
        first = []
        for row in rates:
            # Where this set has the largest rate, the second largest is the largest other one.
            others = np.where(row >= largest, second, largest)
            first.append(int(np.argmax(row - others)))
        return first

    def field_arrays(self, names: Sequence[str], sets: Ints, columns: Ints) -> Mapping[str, Any]:
        """Return one array per field of FeatureContrast, except `feature`, one value per pair.

        A pair is a set and a feature, both as indices.
        """
        counts, holdout, result = self.counts, self.holdout, self.search_result
        rates, holdout_rates = counts.rates()[sets, columns], holdout.rates()[sets, columns]
        other_rates = counts.leaders.largest_other(sets, columns)
        holdout_others = holdout.leaders.largest_other(sets, columns)
        discovery_rates = self.discovery.rates()[sets, columns]
        discovery_others = self.discovery.leaders.largest_other(sets, columns)
        present, column_of = np.unique(columns, return_inverse=True)
        prompt_rates = counts.of_features(present).prompt_rates()
        n_prompts = np.bincount(counts.labels, weights=counts.n > 0, minlength=counts.n_sets)
        return {
            "rate": rates,
            "other_rate": other_rates,
            "other_set": np.array(names)[counts.leaders.runner_up(sets, columns)],
            "score": rates - other_rates,
            "rate_ci": rate_intervals(counts, sets, columns),
            "prompt_rate": prompt_rates[sets, column_of],
            "prompt_other_rate": Leaders.of(prompt_rates).largest_other(sets, column_of),
            "ci": stats.wilson(prompt_rates[sets, column_of], n_prompts[sets]),
            "p": result.p[sets, columns],
            "q": result.q[sets, columns],
            "discovery_score": discovery_rates - discovery_others,
            "confirmed": result.confirmed[sets, columns],
            "holdout_rate": holdout_rates,
            "holdout_other_rate": holdout_others,
            "holdout_score": holdout_rates - holdout_others,
            "holdout_score_ci": margin_intervals(holdout, sets, columns),
            "holdout_p": max_pairwise_p(holdout, sets, columns),
            "holdout_q": result.holdout_q[sets, columns],
            "mean_act": self.mean_acts[sets, columns],
        }
