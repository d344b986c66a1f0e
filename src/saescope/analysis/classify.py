"""Features as a detector: an OR-rule over the best ones, its scores, and plainer detectors.

The rule is Qwen-Scope's (arXiv 2605.11887): a prompt is detected if any of the top K features by
P(fire | target) - P(fire | others) fires on any scored token. It is compared with a probe, a
difference of means and the words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from saescope.analysis import stats
from saescope.analysis.directions import mean_difference
from saescope.sources.catalog import Feature
from saescope.store.arrays import Bools, Floats, Ints

_DRAWS = 10_000


@dataclass(frozen=True)
class OrRule:
    """Detects a prompt if any of the features fires."""

    features: list[Feature]
    columns: Ints

    def __call__(self, fires: Bools) -> Bools:
        """Return which prompts are detected, (prompts,), from `fires` (prompts, features)."""
        return np.asarray(fires[:, self.columns].any(axis=1))


def fit_or_rule(
    fires: Bools,
    positive: Bools,
    features: Ints,
    layer: int,
    max_k: int,
    strength: Floats | None = None,
) -> OrRule:
    """The top K features by difference of firing shares, K with the best F1 on these prompts.

    Of equal differences, those of more `strength` come first; of equal F1, the smallest K wins. If
    no feature fires more often on positive prompts, the rule has none and detects nothing.
    """
    gap = fires[positive].mean(axis=0) - fires[~positive].mean(axis=0)
    if strength is None:
        strength = np.zeros(len(gap))
    n_positive_gaps = int((gap > 0).sum())
    ranked = np.lexsort((-strength, -gap))[: min(max_k, n_positive_gaps)]
    if not len(ranked):
        return OrRule([], ranked)
    detected = np.logical_or.accumulate(fires[:, ranked], axis=1)
    hits, n_detected = detected[positive].sum(axis=0), detected.sum(axis=0)
    f1 = 2 * hits / np.maximum(n_detected + int(positive.sum()), 1)
    chosen = ranked[: int(np.argmax(f1)) + 1]
    return OrRule([Feature(layer, int(features[column])) for column in chosen], chosen)


def baselines(resid: Floats, words: Any, positive: Bools, train: Bools) -> Mapping[str, Bools]:
    """What plainer detectors detect among all prompts, by name; they learn from `train` prompts.

    `resid` (prompts, d_model) are mean residuals, `words` (prompts, tokens; sparse) says which
    tokens occur. `probe` is a logistic regression on the residuals, `difference_of_means` a
    threshold on their projection, `words` a logistic regression on the tokens.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)
    probe = make_pipeline(StandardScaler(), regression)
    probe.fit(resid[train], positive[train])
    lexical = LogisticRegression(class_weight="balanced", max_iter=2000)
    lexical.fit(words[train], positive[train])
    return {
        "probe": np.asarray(probe.predict(resid), bool),
        "difference_of_means": _difference_of_means(resid, positive, train),
        "words": np.asarray(lexical.predict(words), bool),
    }


def _difference_of_means(resid: Floats, positive: Bools, train: Bools) -> Bools:
    """Above the threshold with the best F1 on training prompts, midway between two of them."""
    projection = resid @ mean_difference(resid, positive, train)
    order = np.argsort(-projection[train], kind="stable")
    descending = projection[train][order]
    hits = np.cumsum(positive[train][order])
    n_detected = np.arange(1, len(order) + 1)
    f1 = 2 * hits / (n_detected + hits[-1])
    last = int(np.argmax(f1))
    below = descending[last] - 1
    if last + 1 < len(order):
        below = descending[last + 1]
    return np.asarray(projection > (descending[last] + below) / 2)


@dataclass(frozen=True)
class Scores:
    """A detector on some prompts: shares with 95 % intervals (Wilson; F1: bootstrap over pairs).

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
        """Return a JSON-compatible dict."""
        lists = {name: list(v) for name, v in vars(self).items() if isinstance(v, tuple)}
        return {**vars(self), **lists}


def score(detected: Bools, positive: Bools, pairs: Ints, seed: int = 0) -> Scores:
    """Judge detections of prompts (n,) by which are positive (n,).

    `pairs` (n,) numbers what belongs together, so that the bootstrap draws it together.
    """
    hits, n_detected = int((detected & positive).sum()), int(detected.sum())
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    return Scores(
        f1=_f1(hits, n_detected, n_positive),
        f1_ci=_f1_interval(detected, positive, pairs, seed),
        precision=_share(hits, n_detected),
        precision_ci=_wilson(hits, n_detected),
        recall=_share(hits, n_positive),
        recall_ci=_wilson(hits, n_positive),
        false_positive_rate=_share(n_detected - hits, n_negative),
        positives=n_positive,
        negatives=n_negative,
        always_f1=_f1(n_positive, n_positive + n_negative, n_positive),
    )


def _share(hits: int, n: int) -> float | None:
    return hits / n if n else None


def _f1(hits: int, n_detected: int, n_positive: int) -> float | None:
    if not n_positive:
        return None
    return 2 * hits / (n_detected + n_positive)


def _wilson(hits: int, n: int) -> tuple[float, float]:
    low, high = stats.wilson(hits / max(n, 1), n)
    return float(low), float(high)


def _f1_interval(
    detected: Bools, positive: Bools, pairs: Ints, seed: int
) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of F1 over pairs.

    F1 depends only on how often each outcome of a pair is drawn, and these counts are multinomial:
    drawing them is drawing the pairs, at a cost that does not grow with their number.
    """
    if not positive.any():
        return None
    n_pairs = int(pairs.max()) + 1
    hits = np.bincount(pairs[detected & positive], minlength=n_pairs)
    both = np.bincount(pairs[detected], minlength=n_pairs)
    both += np.bincount(pairs[positive], minlength=n_pairs)
    is_present = np.bincount(pairs, minlength=n_pairs) > 0
    width = int(both.max()) + 1
    outcomes = np.bincount((hits * width + both)[is_present])
    kinds = np.flatnonzero(outcomes)
    return _bootstrap_f1(tuple(kinds.tolist()), tuple(outcomes[kinds].tolist()), width, seed)


@lru_cache(maxsize=1024)
def _bootstrap_f1(
    kinds: tuple[int, ...], pairs_of_kind: tuple[int, ...], width: int, seed: int
) -> tuple[float, float]:
    """Return the interval for so many pairs of each kind; kind h * `width` + b has h hits.

    b is its detected prompts plus its positive ones. Many sets have equal counts.
    """
    n_pairs = sum(pairs_of_kind)
    shares = np.array(pairs_of_kind) / n_pairs
    times_drawn = np.random.default_rng(seed).multinomial(n_pairs, shares, size=_DRAWS)
    hits, both = (times_drawn @ values for values in np.divmod(np.array(kinds), width))
    f1 = 2 * hits[both > 0] / both[both > 0]
    low, high = np.quantile(f1, [0.025, 0.975])
    return float(low), float(high)
