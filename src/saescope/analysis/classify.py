"""A feature as a detector: an OR-rule over the best ones, its scores on prompts it has not seen, and plainer detectors.

The rule is Qwen-Scope's (arXiv 2605.11887): a prompt is detected where any of the top K features by P(fire | target) -
P(fire | others) fires on any scored token. Its worth shows beside a probe, a difference of means and the words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from saescope.analysis import stats
from saescope.analysis.directions import mean_difference
from saescope.analysis.stats import Bools, Floats, Ints
from saescope.sources.catalog import Feature

_DRAWS = 1000


@dataclass(frozen=True)
class Scores:
    """A detector on some prompts: shares with 95 % intervals (Wilson; F1 by bootstrap over pairs).

    What is undefined is None. `always_f1` is what detecting every prompt would score.
    """

    f1: float | None
    f1_ci: tuple[float, float] | None
    precision: float | None
    precision_ci: tuple[float, float]
    recall: float | None
    recall_ci: tuple[float, float]
    false_positive_rate: float | None
    positives: int
    negatives: int
    always_f1: float | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}


def score(detected: Bools, positive: Bools, keys: Sequence[str], seed: int = 0) -> Scores:
    """Judge detections of prompts (n,) by which are positive (n,); `keys` say which prompts belong together."""
    hits, n_pos, n_neg = (
        int((detected & positive).sum()),
        int(positive.sum()),
        int((~positive).sum()),
    )
    n_detected = int(detected.sum())
    return Scores(
        f1=_f1(hits, n_detected, n_pos),
        f1_ci=_f1_interval(detected, positive, keys, seed),
        precision=hits / n_detected if n_detected else None,
        precision_ci=_wilson(hits, n_detected),
        recall=hits / n_pos if n_pos else None,
        recall_ci=_wilson(hits, n_pos),
        false_positive_rate=(n_detected - hits) / n_neg if n_neg else None,
        positives=n_pos,
        negatives=n_neg,
        always_f1=_f1(n_pos, n_pos + n_neg, n_pos),
    )


def _f1(hits: int, detected: int, positives: int) -> float | None:
    return 2 * hits / (detected + positives) if positives and detected + positives else None


def _wilson(hits: int, n: int) -> tuple[float, float]:
    low, high = stats.wilson(hits / n if n else 0.0, n)
    return float(low), float(high)


def _f1_interval(
    detected: Bools, positive: Bools, keys: Sequence[str], seed: int
) -> tuple[float, float] | None:
    if not positive.any():
        return None
    names, number = np.unique(np.array(keys), return_inverse=True)
    drawn = np.random.default_rng(seed).integers(len(names), size=(_DRAWS, len(names)))
    weights = np.zeros((_DRAWS, len(names)))
    np.add.at(weights, (np.arange(_DRAWS)[:, None], drawn), 1)
    by_prompt = weights[:, number]
    hits, both = by_prompt @ (detected & positive), by_prompt @ detected + by_prompt @ positive
    f1 = 2 * hits[both > 0] / both[both > 0]
    low, high = np.quantile(f1, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class OrRule:
    """Detects a prompt where any of the features fires."""

    features: list[Feature]
    columns: Ints

    def __call__(self, fires: Bools) -> Bools:
        """Which prompts are detected, of `fires` (prompts, features of the layer)."""
        return np.asarray(fires[:, self.columns].any(axis=1))


def fit_or_rule(
    fires: Bools,
    positive: Bools,
    features: Ints,
    layer: int,
    max_k: int,
    strength: Floats | None = None,
) -> OrRule:
    """The top K by difference of firing shares, K with the best F1 on these prompts, the smallest of equals.

    Of features with the same difference those of more `strength` come first.

    The rule has no feature, and detects nothing, where none fires more often on positive prompts.
    """
    gap = fires[positive].mean(axis=0) - fires[~positive].mean(axis=0)
    ranked = np.lexsort((-(strength if strength is not None else np.zeros(len(gap))), -gap))[
        : min(max_k, int((gap > 0).sum()))
    ]
    if not len(ranked):
        return OrRule([], ranked)
    detected = np.logical_or.accumulate(fires[:, ranked], axis=1)
    hits, n_detected = detected[positive].sum(axis=0), detected.sum(axis=0)
    f1 = 2 * hits / np.maximum(n_detected + int(positive.sum()), 1)
    k = int(np.argmax(f1)) + 1
    return OrRule([Feature(layer, int(features[column])) for column in ranked[:k]], ranked[:k])


def baselines(
    resid: npt.NDArray[np.float32], words: Any, positive: Bools, train: Bools
) -> Mapping[str, tuple[Bools, str]]:
    """What plainer detectors, trained on the `train` prompts, detect among all: by name, with what they are.

    `resid` (prompts, d_model) are mean residuals, `words` (prompts, tokens) says which tokens occur.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    vectors = resid.astype(np.float64)
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)
    )
    probe.fit(vectors[train], positive[train])
    lexical = LogisticRegression(class_weight="balanced", max_iter=2000).fit(
        words[train], positive[train]
    )
    return {
        "probe": (
            np.asarray(probe.predict(vectors), bool),
            "logistic regression on the mean residual",
        ),
        "difference_of_means": (
            _difference_of_means(vectors, positive, train),
            "projection of the mean residual",
        ),
        "words": (
            np.asarray(lexical.predict(words), bool),
            "logistic regression on which tokens occur",
        ),
    }


def _difference_of_means(resid: Floats, positive: Bools, train: Bools) -> Bools:
    """Above the threshold with the best F1 on the training prompts, midway between two of them."""
    along = resid @ mean_difference(resid, positive, train)
    seen, truth = along[train], positive[train]
    order = np.argsort(-seen, kind="stable")
    hits = np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + int(truth.sum()))
    at = int(np.argmax(f1))
    below = seen[order[at + 1]] if at + 1 < len(order) else seen[order[at]] - 1
    return np.asarray(along > (seen[order[at]] + below) / 2)
