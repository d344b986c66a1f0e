"""Features that detect a behaviour: by thresholds on prompts, as groups, and as a classifier.

Everything is selected on discovery prompts and reported on held-out prompts. How many features
pass the thresholds by chance is measured by the same rule with shuffled labels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from saescope.analysis import stats
from saescope.analysis.classifier import Classifier, fit_classifier
from saescope.analysis.counts import FiringCounts, count_fires, refuse_unscored
from saescope.analysis.detection import (
    DetectedFeature,
    Detection,
    DetectSettings,
    PromptFirings,
)
from saescope.analysis.measures import measure_sets, monolinguality
from saescope.analysis.rates import largest_other, rate_margin, runner_up
from saescope.analysis.search import SearchResult, search
from saescope.analysis.sets import Comparison, check_sets, similar_comparisons
from saescope.sources.catalog import Feature
from saescope.store.arrays import Bools, Floats, Ints
from saescope.store.masking import Positions
from saescope.store.run_positions import run_positions
from saescope.store.runs import Run
from saescope.store.tables import LayerFeatures

GROUP_JACCARD = 0.5
_MIN_PROMPTS = 10  # with fewer on a side, thresholds pass by chance


def detect(
    run: Run,
    target: str,
    settings: DetectSettings | None = None,
    *,
    against: Sequence[str] | None = None,
    transfer: Mapping[str, Sequence[str]] | None = None,
    layers: Sequence[int] | None = None,
) -> Detection:
    """Return the features that fire on prompts of `target` and not on those of the sets `against`.

    `against` defaults to all other sets. The classifier is of the layer with the largest gap in
    shares of prompts. `transfer` maps positive sets to negative ones; by default sets named alike
    (`x_ja` and `y_ja` for `x_en` and `y_en`), else all others. Raises PromptError for unknown sets.

    >>> import tempfile
    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", [2])
    >>> saes = [ss.load_sae("saescope-tiny-sae", 2)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = ss.extract(lm, saes, ss.bundled_prompts()[:3], f"{folder}/run")
    ...     result = ss.detect(run, "english", ss.DetectSettings(shuffles=20))
    >>> result.features[0].holdout_rate, result.features[0].holdout_other_rate
    (1.0, 0.0)
    """
    (settings := settings or DetectSettings()).check()
    others = check_sets(run.sets, target, against, transfer)
    comparison = Comparison(run, target, others, settings.seed)
    searched = [_search_layer(comparison, n, settings) for n in layers or run.layers]
    by_chance = _passing_by_chance(searched, settings)
    best = max(searched, key=lambda layer: layer.best_gap)
    classifier = _classifier(comparison, best, transfer, settings.max_k)
    detected = _detected_rows(comparison, searched, classifier, settings)
    return Detection(
        run=str(run.path),
        target=target,
        against=others,
        settings=settings,
        features=[row for row in detected.values() if row.passes],
        by_chance=float(np.mean(by_chance)),
        by_chance_95=float(np.quantile(by_chance, 0.95)),
        firings=_firings(comparison, searched, detected),
        classifier=classifier,
        sets=measure_sets(run, best.stored, best.positions.scored),
        masked={layer.number: layer.positions.masked for layer in searched},
        warnings=_warnings(comparison),
        sae_fits=run.sae_fits(layers),
        first_by_tokens=_first_by_tokens(best),
        detector=[detected[feature] for feature in classifier.features],
    )


def _first_by_tokens(layer: "_LayerSearch") -> Feature | None:
    """Return the feature that `contrast` would put first for the target."""
    margins = rate_margin(layer.discovery.rates(), 0)
    if not len(margins):
        return None
    return Feature(layer.number, int(layer.counts.features[int(np.argmax(margins))]))


@dataclass(frozen=True)
class _LayerSearch:
    """One layer's firings, and the search result for the compared sets.

    Columns are as in `counts`; in `discovery` and `holdout` the target is set 0.
    """

    number: int
    stored: LayerFeatures
    positions: Positions
    counts: FiringCounts
    discovery: FiringCounts
    holdout: FiringCounts
    search_result: SearchResult
    passing: Ints
    best_gap: float

    def columns_of(self, features: Iterable[Feature]) -> Ints:
        """Return the columns of those features that are of this layer."""
        ids = [feature.id for feature in features if feature.layer == self.number]
        return np.searchsorted(self.counts.features, np.array(ids, np.int64))


def _search_layer(comparison: Comparison, number: int, settings: DetectSettings) -> _LayerSearch:
    run = comparison.run
    stored = run.features(number)
    positions = run_positions(run, settings.masking)[number]
    counts = count_fires(run, stored, positions.scored)
    refuse_unscored(run, counts)
    compared = _compared_sets(comparison, counts)
    discovery = compared.of_prompts(comparison.is_discovery)
    holdout = compared.of_prompts(~comparison.is_discovery)
    rates = discovery.prompt_rates()
    return _LayerSearch(
        number=number,
        stored=stored,
        positions=positions,
        counts=counts,
        discovery=discovery,
        holdout=holdout,
        search_result=search(discovery, holdout, settings.alpha),
        passing=np.flatnonzero(_passes(rates, settings)),
        best_gap=float(rate_margin(rates, 0).max(initial=-1.0)),
    )


def _compared_sets(comparison: Comparison, counts: FiringCounts) -> FiringCounts:
    """Return the firings with the target as set 0, then the sets against it; no other prompts."""
    names = [comparison.target, *comparison.against]
    new_label = np.full(counts.n_sets, -1)
    for label, name in enumerate(names):
        new_label[comparison.run.sets.index(name)] = label
    labels = new_label[counts.labels]
    n = np.where(labels >= 0, counts.n, 0)
    return replace(counts, n=n, labels=labels, n_sets=len(names))


def _passes(prompt_rates: Floats, settings: DetectSettings) -> Bools:
    fires_here = prompt_rates[0] >= settings.min_rate
    silent_elsewhere = largest_other(prompt_rates, 0) <= settings.max_other
    return np.asarray(fires_here & silent_elsewhere)


def _passing_by_chance(searched: Sequence[_LayerSearch], settings: DetectSettings) -> Floats:
    """Count per shuffle the features of all layers that pass with shuffled labels."""
    return sum((_passing_in_layer(layer, settings) for layer in searched), np.zeros(1))


def _passing_in_layer(layer: _LayerSearch, settings: DetectSettings) -> Floats:
    """Count per shuffle the features that pass on discovery prompts with shuffled labels."""
    discovery = layer.discovery
    if settings.shuffles == 0:
        return np.zeros(1)
    n_target = float((discovery.labels == 0).sum())
    fires_enough = discovery.prompts_fired() >= settings.min_rate * n_target
    candidates = discovery.of_features(fires_enough)
    rng = np.random.default_rng([settings.seed, layer.number])
    passing = np.zeros(settings.shuffles)
    for shuffle in range(settings.shuffles):
        shuffled = replace(candidates, labels=rng.permutation(candidates.labels))
        passing[shuffle] = _passes(shuffled.prompt_rates(), settings).sum()
    return passing


def _detected_rows(
    comparison: Comparison,
    searched: Sequence[_LayerSearch],
    classifier: Classifier,
    settings: DetectSettings,
) -> dict[Feature, DetectedFeature]:
    """Return the features that pass or that the detector uses, the largest difference first."""
    rows: list[DetectedFeature] = []
    for layer in searched:
        columns = np.union1d(layer.passing, layer.columns_of(classifier.features))
        rows += _detected(comparison, layer, columns, settings)
    rows.sort(key=lambda row: (row.prompt_other_rate - row.prompt_rate, row.feature))
    return {row.feature: row for row in rows}


def _detected(
    comparison: Comparison, layer: _LayerSearch, columns: Ints, settings: DetectSettings
) -> list[DetectedFeature]:
    """Return these features of one layer with their figures."""
    if not len(columns):
        return []
    holdout = layer.holdout.of_features(columns)
    rates = layer.discovery.of_features(columns).prompt_rates()
    holdout_rates = holdout.prompt_rates()
    n_holdout = int((holdout.labels == 0).sum())
    others, holdout_others = largest_other(rates, 0), largest_other(holdout_rates, 0)
    runner_ups = runner_up(rates, 0) - 1
    holdout_ci = stats.wilson(holdout_rates[0], n_holdout)
    holdout_passes = _passes(holdout_rates, settings)
    passes = np.isin(columns, layer.passing)
    ids = layer.counts.features[columns]
    strength = _monolinguality(comparison, layer, ids)
    groups = _groups(layer, ids)
    return [
        DetectedFeature(
            feature=Feature(layer.number, int(ids[index])),
            prompt_rate=float(rates[0, index]),
            prompt_other_rate=float(others[index]),
            other_set=comparison.against[int(runner_ups[index])],
            holdout_rate=float(holdout_rates[0, index]),
            holdout_ci=holdout_ci.at(index),
            holdout_other_rate=float(holdout_others[index]),
            holdout_passes=bool(holdout_passes[index]),
            p=float(layer.search_result.p[0, column]),
            q=float(layer.search_result.q[0, column]),
            confirmed=bool(layer.search_result.confirmed[0, column]),
            holdout_q=float(layer.search_result.holdout_q[0, column]),
            monolinguality=float(strength[index]),
            group=int(groups[index]),
            passes=bool(passes[index]),
        )
        for index, column in enumerate(columns.tolist())
    ]


def _classifier(
    comparison: Comparison,
    layer: _LayerSearch,
    transfer: Mapping[str, Sequence[str]] | None,
    max_k: int,
) -> Classifier:
    if transfer is None:
        names, target = comparison.run.sets, comparison.target
        transfer = similar_comparisons(names, target, comparison.against)
    strength = _monolinguality(comparison, layer, layer.counts.features)
    return fit_classifier(comparison, layer.number, layer.counts, strength, transfer, max_k)


def _monolinguality(comparison: Comparison, layer: _LayerSearch, ids: Ints) -> Floats:
    token_prompt = comparison.run.token_prompt
    scored = layer.positions.scored
    target = scored & comparison.is_target[token_prompt]
    others = scored & comparison.is_other[token_prompt]
    return monolinguality(layer.stored, target, others, ids)


def _groups(layer: _LayerSearch, ids: Ints) -> Ints:
    """Return group numbers of features that fire on the same tokens, (features,).

    Average linkage groups features that share half of their tokens.
    """
    if len(ids) < 2:
        return np.zeros(len(ids), np.int64)
    from scipy.cluster.hierarchy import fcluster, linkage

    scored = np.flatnonzero(layer.positions.scored)
    fires = np.stack([layer.stored.fires(feature)[scored] for feature in ids.tolist()])
    both = fires.astype(np.float32) @ fires.T.astype(np.float32)
    n_tokens = fires.sum(axis=1)
    either = n_tokens[:, None] + n_tokens[None, :] - both
    distance = 1 - both / np.maximum(either, 1)
    pairs = distance[np.triu_indices(len(ids), 1)]
    groups = fcluster(linkage(pairs, "average"), GROUP_JACCARD, "distance")
    return np.asarray(groups, np.int64) - 1


def _firings(
    comparison: Comparison, searched: Sequence[_LayerSearch], features: Iterable[Feature]
) -> list[PromptFirings]:
    """Return per prompt of the run which of these features fire on it."""
    prompts = comparison.run.prompts
    fires: list[list[Feature]] = [[] for _ in prompts]
    for layer in searched:
        shown = layer.counts.of_features(np.sort(layer.columns_of(features)))
        for prompt, column in np.argwhere(shown.fires_anywhere()).tolist():
            fires[prompt].append(Feature(layer.number, int(shown.features[column])))
    return [
        PromptFirings(prompt.id, prompt.set, subset, fired)
        for prompt, subset, fired in zip(prompts, comparison.split, fires, strict=True)
    ]


def _warnings(comparison: Comparison) -> list[str]:
    is_discovery = comparison.is_discovery
    discovery, holdout, other_discovery, other_holdout = (
        int((rows & part).sum())
        for rows in (comparison.is_target, comparison.is_other)
        for part in (is_discovery, ~is_discovery)
    )
    if min(discovery, holdout, other_discovery, other_holdout) >= _MIN_PROMPTS:
        return []
    return [
        f"few prompts: {comparison.target} has {discovery} for discovery and {holdout} held out, "
        f"the others {other_discovery} and {other_holdout}; with fewer than {_MIN_PROMPTS} in "
        "each, thresholds pass by chance and intervals are wide"
    ]
