"""The classifier of `detect`: one layer's OR-rule, tried on held-out prompts and other sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from saescope.analysis.classify import Scores, baselines, fit_or_rule, score
from saescope.analysis.counts import FiringCounts
from saescope.analysis.sets import Comparison, prompts_of
from saescope.sources.catalog import Feature
from saescope.store.arrays import Bools, Floats
from saescope.store.runs import Run


class TransferScores(NamedTuple):
    """The rule on held-out prompts of other sets, and the plainer detectors on the same."""

    rule: Scores
    baselines: dict[str, Scores]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        baselines = {name: scores.to_dict() for name, scores in self.baselines.items()}
        return {**self.rule.to_dict(), "baselines": baselines}


@dataclass(frozen=True)
class Classifier:
    """The OR-rule's features, its scores on discovery and held-out prompts and on other sets.

    `baselines` are plainer detectors on the same held-out prompts.
    """

    layer: int
    features: list[Feature]
    discovery: Scores
    holdout: Scores
    baselines: dict[str, Scores]
    transfer: dict[str, TransferScores]
    silent_on: list[str]
    "Sets of `transfer` that the detector was chosen to be silent on: not expected to transfer."

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict; the held-out scores stand at the top."""
        return {
            "layer": self.layer,
            "features": [str(feature) for feature in self.features],
            **self.holdout.to_dict(),
            "discovery": self.discovery.to_dict(),
            "baselines": {name: scores.to_dict() for name, scores in self.baselines.items()},
            "transfer": {
                name: {**scores.to_dict(), "expected": name not in self.silent_on}
                for name, scores in self.transfer.items()
            },
        }


def fit_classifier(
    comparison: Comparison,
    layer: int,
    counts: FiringCounts,
    strength: Floats,
    transfer: Mapping[str, Sequence[str]],
    max_k: int,
) -> Classifier:
    """Fit the rule and the baselines on discovery prompts, and score them on all others.

    `strength` (features,) decides between features of equal difference; `transfer` names positive
    sets and the negative ones that each is tried with.
    """
    run = comparison.run
    scorable = counts.n > 0
    compared = (comparison.is_target | comparison.is_other) & scorable
    train, test = compared & comparison.is_discovery, compared & ~comparison.is_discovery
    fires, positive = counts.fires_anywhere(), comparison.is_target
    rule = fit_or_rule(fires[train], positive[train], counts.features, layer, max_k, strength)
    resid = run.resids(layer).mean.astype(np.float64)
    plain = baselines(resid, _occurring_tokens(run), positive, train)
    trial = _Trial(rule(fires), plain, comparison)
    transferred = {}
    for name, negatives in transfer.items():
        is_positive = prompts_of(run, [name])
        rows = scorable & ~comparison.is_discovery & (is_positive | prompts_of(run, negatives))
        transferred[name] = trial.on(rows, is_positive)
    holdout = trial.on(test, positive)
    return Classifier(
        layer=layer,
        features=rule.features,
        discovery=trial.score(trial.rule, train, positive),
        holdout=holdout.rule,
        baselines=holdout.baselines,
        transfer=transferred,
        silent_on=[name for name in transferred if name in comparison.against],
    )


@dataclass(frozen=True)
class _Trial:
    """What the rule and the baselines detect among all prompts."""

    rule: Bools
    baselines: Mapping[str, Bools]
    comparison: Comparison

    def on(self, rows: Bools, positive: Bools) -> TransferScores:
        """Return their scores on some of the prompts."""
        plain = {
            name: self.score(detected, rows, positive) for name, detected in self.baselines.items()
        }
        return TransferScores(self.score(self.rule, rows, positive), plain)

    def score(self, detected: Bools, rows: Bools, positive: Bools) -> Scores:
        """Return one detector's scores on some of the prompts."""
        pairs = self.comparison.pair_numbers[rows]
        return score(detected[rows], positive[rows], pairs, self.comparison.seed)


def _occurring_tokens(run: Run) -> Any:
    """Return which tokens occur in each prompt, (prompts, tokens; sparse), as 0 and 1."""
    _, column = np.unique(run.token_id, return_inverse=True)
    shape = (len(run.prompts), int(column.max()) + 1)
    ones = np.ones(len(column))
    counts = sparse.coo_array((ones, (run.token_prompt, column)), shape).tocsr()
    return (counts > 0).astype(np.float64)
