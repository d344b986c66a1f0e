"""The same question at every layer: where sets separate best, and by which features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from saescope.analysis.contrast import Contrast, ContrastSettings, FeatureContrast, contrast
from saescope.analysis.counts import FiringCounts, count_fires
from saescope.analysis.follow import Cosines, Match, ScoredLayers, follow
from saescope.analysis.headline import Headline
from saescope.analysis.separation import best_features, best_layer, gain_of_choice, separation
from saescope.sources.catalog import Feature
from saescope.sources.splits import split_key, split_prompts
from saescope.store.arrays import Bools, Floats
from saescope.store.masking import MaskedCounts
from saescope.store.runs import Run
from saescope.store.sae_fit import SaeFits
from saescope.table import Table

_DRAWS = 1000


def layers(
    run: Run,
    settings: ContrastSettings | None = None,
    *,
    feature: Feature | None = None,
    cosines: Cosines | None = None,
    layers: Sequence[int] | None = None,
) -> "Layers":
    """Return separation and best features per layer, and features followed through layers.

    Follows `feature`. Default: each set's best one at the best layer. `cosines` come from
    `decoder_cosines`; without them, features are matched by co-firing alone. Raises PromptError
    for fewer than two sets, RunError for a layer or feature that the run does not hold.

    >>> import tempfile
    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", [1, 4])
    >>> saes = [ss.load_sae("saescope-tiny-sae", layer) for layer in (1, 4)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = ss.extract(lm, saes, ss.bundled_prompts()[:3], f"{folder}/run")
    ...     result = ss.layers(run)
    >>> sorted(result.layers), result.best in (1, 4)
    ([1, 4], True)
    """
    settings = replace(settings or ContrastSettings(), n_top=1, shuffles=0)
    numbers = tuple(layers or run.layers)
    contrasts = contrast(run, settings, layers=numbers)
    stored = ScoredLayers(run, settings.masking)
    best = best_layer(contrasts)
    drawn = _drawn(run, contrasts, stored, settings.seed)
    separations = _separations(contrasts, drawn, best)
    followed = None
    origins = [top.feature for top in separations[best].sets.values()]
    if feature is not None:
        run.check_feature(feature)
        followed = FollowedFeature(feature, _rates(run, stored, feature.id, numbers))
        origins = [feature]
    path = sorted({*numbers, *(origin.layer for origin in origins)})
    return Layers(
        run=str(run.path),
        layers=separations,
        best=best,
        feature=followed,
        matches=follow(stored, origins, path, cosines),
        masked=_masked(contrasts),
        sae_fits=contrasts.sae_fits,
        headline=settings.headline,
        gain_of_choice=gain_of_choice(drawn),
    )


@final
@dataclass(frozen=True, repr=False)
class Layers(Table):
    """The result of `layers`.

    `best` is the layer with the largest separation on held-out prompts; `gain_of_choice` is how
    much that choice raises its separation by chance.
    """

    shown = "layer separation set feature holdout_rate other_set holdout_score confirmed"

    run: str
    layers: dict[int, "LayerSeparation"]
    best: int | None
    feature: "FollowedFeature | None"
    matches: list[Match]
    masked: dict[int, MaskedCounts]
    sae_fits: SaeFits
    headline: Headline = Headline()
    gain_of_choice: float = 0.0

    @property
    def top_warnings(self) -> list[str]:
        """SAEs that do not fit."""
        return self.sae_fits.warnings

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-compatible dict that `saescope layers --json` prints."""
        layers = {}
        for n, layer in self.layers.items():
            layers[str(n)] = {**layer.to_dict(), "masked": self.masked[n]._asdict()}
        return {
            "layers": layers,
            "best": self.best,
            "gain_of_choice": self.gain_of_choice,
            "settings": vars(self.headline),
            "feature": self.feature and self.feature.to_dict(),
            "matches": [match.to_dict() for match in self.matches],
            "sae_fit": self.sae_fits.to_dict(),
            "warnings": self.sae_fits.warnings,
            "run": self.run,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per layer and set."""
        return [
            {"layer": n, "separation": layer.separation, "set": name, **feature.to_dict()}
            for n, layer in self.layers.items()
            for name, feature in layer.sets.items()
        ]


@dataclass(frozen=True)
class LayerSeparation:
    """One layer: the mean over sets of the best feature's held-out score, and those features.

    Features are chosen on discovery prompts; a set without any counts as 0. `as_good` says that the
    best layer is not distinguishably better. `headlines` has each set's confirmed feature with the
    minimum effect of a headline, None for sets that have none.
    """

    separation: float
    ci: tuple[float, float]
    as_good: bool
    sets: dict[str, FeatureContrast]
    headlines: dict[str, FeatureContrast | None]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        return {
            "separation": self.separation,
            "ci": list(self.ci),
            "as_good_as_best": self.as_good,
            "sets": {name: feature.to_dict() for name, feature in self.sets.items()},
            "headlines": {name: one and one.to_dict() for name, one in self.headlines.items()},
        }


@dataclass(frozen=True)
class FollowedFeature:
    """The rates of one feature id at every layer, where it means something else each time."""

    feature: Feature
    rates: dict[int, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        rates = {str(layer): by_set for layer, by_set in self.rates.items()}
        return {"feature": str(self.feature), "rates": rates}


def _masked(contrasts: Contrast) -> dict[int, MaskedCounts]:
    """Return how many positions of each layer do not count."""
    return {
        n: MaskedCounts(layer.masked_pos0, layer.masked_sinks)
        for n, layer in contrasts.layers.items()
    }


def _drawn(run: Run, contrasts: Contrast, stored: ScoredLayers, seed: int) -> dict[int, Floats]:
    """Return every layer's separation in every bootstrap draw, (draws,) each."""
    weights = _bootstrap_weights(run, seed)
    return {
        n: _drawn_separations(run, stored, n, best_features(layer.sets), weights)
        for n, layer in contrasts.layers.items()
    }


def _separations(
    contrasts: Contrast, drawn: Mapping[int, Floats], best: int
) -> dict[int, LayerSeparation]:
    """Return every layer's separation with its interval, compared with the best layer."""
    separations = {}
    for n, layer in contrasts.layers.items():
        lead_of_best = np.quantile(drawn[best] - drawn[n], 0.025)
        low, high = np.quantile(drawn[n], [0.025, 0.975])
        separations[n] = LayerSeparation(
            separation=separation(layer.sets),
            ci=(float(low), float(high)),
            as_good=bool(lead_of_best <= 0),
            sets=best_features(layer.sets),
            headlines={name: one.headline for name, one in layer.sets.items()},
        )
    return separations


def _bootstrap_weights(run: Run, seed: int) -> Floats:
    """Return how often each prompt is drawn, (draws, prompts).

    Held-out prompts are drawn with replacement, those of a pair together.
    """
    split = split_prompts(run.prompts, seed=seed)
    is_holdout = np.array([part == "holdout" for part in split])
    keys = np.array([split_key(prompt) for prompt in run.prompts])
    names, pair = np.unique(keys, return_inverse=True)
    drawable = np.unique(pair[is_holdout])
    if not len(drawable):
        return np.zeros((1, len(keys)))
    rng = np.random.default_rng(seed)
    drawn = rng.choice(drawable, size=(_DRAWS, len(drawable)))
    times_drawn = np.zeros((_DRAWS, len(names)))
    np.add.at(times_drawn, (np.arange(_DRAWS)[:, None], drawn), 1)
    return np.asarray(times_drawn[:, pair] * is_holdout)


def _drawn_separations(
    run: Run,
    stored: ScoredLayers,
    number: int,
    top: Mapping[str, FeatureContrast],
    weights: Floats,
) -> Floats:
    """Return one layer's separation in every draw, (draws,)."""
    if not top:
        return np.zeros(len(weights))
    layer = stored[number]
    counts = count_fires(run, layer.features, layer.scored)
    columns = np.searchsorted(counts.features, [best.feature.id for best in top.values()])
    positions = np.stack(
        [weights[:, rows] @ counts.n[rows] for rows in counts.prompts_of_sets], axis=1
    )
    margins = [
        _drawn_margin(counts, run.sets.index(name), column, weights, np.maximum(positions, 1))
        for name, column in zip(top, columns.tolist(), strict=True)
    ]
    return np.asarray(np.sum(margins, axis=0) / len(run.sets))


def _drawn_margin(
    counts: FiringCounts, set_index: int, column: int, weights: Floats, positions: Floats
) -> Floats:
    """Return the margin of one feature in one set in every draw, (draws,).

    Sets in which the feature never fires have rate 0: only the others are summed. `positions`
    (draws, sets) counts the scored positions drawn.
    """
    entries = slice(*counts.by_feature.indptr[column : column + 2])
    prompts, hits = counts.by_feature.indices[entries], counts.by_feature.data[entries]
    labels = counts.labels[prompts]
    other_rate = np.full(len(weights), -np.inf)
    rate = np.zeros(len(weights))
    present = np.unique(labels).tolist()
    for i in present:
        of_set = labels == i
        drawn = weights[:, prompts[of_set]] @ hits[of_set] / positions[:, i]
        if i == set_index:
            rate = drawn
        else:
            other_rate = np.maximum(other_rate, drawn)
    n_others = counts.n_sets - 1
    if len(set(present) - {set_index}) < n_others:
        other_rate = np.maximum(other_rate, 0.0)
    return np.asarray(rate - other_rate)


def _rates(
    run: Run, stored: ScoredLayers, feature_id: int, numbers: Sequence[int]
) -> dict[int, dict[str, float]]:
    """Return the share of scored positions on which this id fires, by layer and set."""
    rates = {}
    for number in numbers:
        if feature_id < run.saes[number].d_sae:
            scored = stored[number].scored
            fires = stored.fires(Feature(number, feature_id))
            rates[number] = _rates_per_set(run, fires, scored)
    return rates


def _rates_per_set(run: Run, fires: Bools, scored: Bools) -> dict[str, float]:
    set_index = run.set_of_token[scored]
    hits = np.bincount(set_index, weights=fires[scored], minlength=len(run.sets))
    n = np.bincount(set_index, minlength=len(run.sets))
    rates = hits / np.maximum(n, 1)
    return dict(zip(run.sets, rates.tolist(), strict=True))
