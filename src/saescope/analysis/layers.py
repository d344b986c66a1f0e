"""The same question at every layer: where sets separate best, and which feature a concept is at each depth.

Feature ids mean nothing from one layer to another: every layer has an SAE of its own. A concept is followed by what
fires on the same tokens and, where decoders are at hand, writes in the same direction.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, final

import numpy as np
import numpy.typing as npt

from saescope.analysis.contrast import (
    Contrast,
    ContrastSettings,
    FeatureContrast,
    contrast,
    feature_dict,
)
from saescope.analysis.counts import fires_by_prompt
from saescope.analysis.stats import Bools, Floats, Ints
from saescope.errors import RunError
from saescope.sources.catalog import Feature
from saescope.sources.prompts import split_key, split_prompts
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.store.tables import LayerFeatures
from saescope.table import Table

# Cosines of some features' decoder directions with those of every feature of a layer: (features, d_sae).
Cosines = Callable[[Sequence[Feature], int], npt.NDArray[np.float32]]
_DRAWS = 1000


@dataclass(frozen=True)
class LayerSeparation:
    """One layer: the mean over sets of the best feature's held-out score, with its interval, and those features.

    Features are chosen on the discovery part. `as_good` says that the best layer is not distinguishably better.
    """

    separation: float
    ci: tuple[float, float]
    as_good: bool
    sets: dict[str, FeatureContrast]


@dataclass(frozen=True)
class Match:
    """A feature and what stands for it at another layer.

    `cofire` is the share of positions where both fire among those where either does, `cofire_origin` the same with the
    feature that is followed; `cosine` that of the decoder directions, None where decoders are not at hand.
    """

    origin: Feature
    source: Feature
    target: Feature
    cosine: float | None
    cofire: float
    cofire_origin: float


@dataclass(frozen=True)
class FollowedFeature:
    """One feature id at every layer, where it means something else each time."""

    feature: Feature
    rates: dict[int, dict[str, float]]


@final
@dataclass(frozen=True)
class Layers(Table):
    """The answer to `layers`; `best` is chosen on the discovery part."""

    run: str
    layers: dict[int, LayerSeparation]
    best: int | None
    feature: FollowedFeature | None
    matches: list[Match]
    masked: dict[int, tuple[int, int]]

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope layers`."""
        return {
            "layers": {
                str(n): {
                    "separation": one.separation,
                    "ci": list(one.ci),
                    "as_good_as_best": one.as_good,
                    "sets": {name: feature_dict(feature) for name, feature in one.sets.items()},
                    "masked": dict(zip(("pos0", "sinks"), self.masked[n], strict=True)),
                }
                for n, one in self.layers.items()
            },
            "best": self.best,
            "feature": self.feature
            and {
                "feature": str(self.feature.feature),
                "rates": {str(n): rates for n, rates in self.feature.rates.items()},
            },
            "matches": [
                {
                    "from": str(m.source),
                    "to": str(m.target),
                    "cosine": m.cosine,
                    "cofire": m.cofire,
                    "origin": str(m.origin),
                    "cofire_origin": m.cofire_origin,
                }
                for m in self.matches
            ],
            "run": self.run,
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row a layer and set."""
        return [
            {"layer": n, "separation": one.separation, "set": name, **feature_dict(feature)}
            for n, one in self.layers.items()
            for name, feature in one.sets.items()
        ]


def layers(
    run: Run,
    settings: ContrastSettings | None = None,
    *,
    feature: Feature | None = None,
    cosines: Cosines | None = None,
    layers: Sequence[int] | None = None,
) -> Layers:
    """Separation and best features at every layer of a run, and features followed from layer to layer.

    Followed is `feature`, or else each set's best one at the best layer. Raises PromptError for fewer than two sets,
    RunError for a layer or feature that the run does not hold.
    """
    settings = replace(settings or ContrastSettings(), n_top=1, shuffles=0)
    chosen = tuple(layers or run.layers)
    found = contrast(run, settings, layers=chosen)
    stored = _Stored(run, settings.masking)
    separations, best = _separations(run, found, stored, settings)
    if feature is not None:
        run.check_layer(feature.layer)
        if feature.id >= run.saes[feature.layer].d_sae:
            raise RunError(
                f"feature {feature} is none: layer {feature.layer} has {run.saes[feature.layer].d_sae}"
            )
        origins = [feature]
    else:
        origins = [one.feature for one in separations[best].sets.values()]
    return Layers(
        run=str(run.path),
        layers=separations,
        best=best,
        feature=FollowedFeature(feature, _rates(run, stored, feature.id, chosen))
        if feature
        else None,
        matches=_follow(stored, origins, sorted({*chosen, *(f.layer for f in origins)}), cosines),
        masked={n: (one.masked_pos0, one.masked_sinks) for n, one in found.layers.items()},
    )


class _Stored:
    """A run's layers with their scored positions; the last two are kept, for neighbours are asked together."""

    def __init__(self, run: Run, masking: Masking) -> None:
        self.run = run
        self._masking = masking
        self._kept: dict[int, tuple[LayerFeatures, Bools]] = {}

    def layer(self, layer: int) -> tuple[LayerFeatures, Bools]:
        if layer not in self._kept:
            features = self.run.features(layer)
            scored = self._masking.apply(self.run.token_pos, features.norms).scored
            self._kept = {**dict(list(self._kept.items())[-1:]), layer: (features, scored)}
        return self._kept[layer]

    def fires(self, feature: Feature) -> Bools:
        """The tokens on which a feature fires, scored or not."""
        features, _ = self.layer(feature.layer)
        return features.fires(feature.id)


def _separations(
    run: Run, found: Contrast, stored: _Stored, settings: ContrastSettings
) -> tuple[dict[int, LayerSeparation], int]:
    keys = [split_key(prompt) for prompt in run.prompts]
    holdout = np.array(
        [part == "holdout" for part in split_prompts(run.prompts, seed=settings.seed)]
    )
    weights = _draws(keys, holdout, settings.seed)
    tops = {n: {name: one.features[0] for name, one in layer.sets.items() if one.features}
            for n, layer in found.layers.items()}  # fmt: skip
    drawn = {n: _scores(run, stored, n, top, weights) for n, top in tops.items()}
    discovery = {n: _mean([f.discovery_score for f in top.values()]) for n, top in tops.items()}
    best = max(discovery, key=lambda n: discovery[n])
    separations = {}
    for n, top in tops.items():
        behind = np.quantile(drawn[best] - drawn[n], 0.025)
        low, high = np.quantile(drawn[n], [0.025, 0.975])
        separations[n] = LayerSeparation(
            separation=_mean([f.holdout_score for f in top.values()]),
            ci=(float(low), float(high)),
            as_good=bool(behind <= 0),
            sets=top,
        )
    return separations, best


def _mean(scores: Sequence[float]) -> float:
    return float(np.mean(scores)) if scores else 0.0


def _draws(keys: Sequence[str], holdout: Bools, seed: int) -> Floats:
    """How often each prompt is drawn, (draws, prompts): held-out prompts with replacement, those of a pair together."""
    names, number = np.unique(np.array(keys), return_inverse=True)
    drawable = np.unique(number[holdout])
    if not len(drawable):
        return np.zeros((1, len(keys)))
    rng = np.random.default_rng(seed)
    drawn = rng.choice(drawable, size=(_DRAWS, len(drawable)))
    counts = np.zeros((_DRAWS, len(names)))
    np.add.at(counts, (np.arange(_DRAWS)[:, None], drawn), 1)
    return np.asarray(counts[:, number] * holdout)


def _scores(
    run: Run, stored: _Stored, layer: int, top: Mapping[str, FeatureContrast], weights: Floats
) -> Floats:
    """Separation of one layer under every draw."""
    if not top:
        return np.zeros(len(weights))
    features, scored = stored.layer(layer)
    hits = fires_by_prompt(run, features, scored, np.array([f.feature.id for f in top.values()]))
    n = np.bincount(run.token_prompt[scored], minlength=len(run.prompts))
    rates = np.stack(
        [
            (weights[:, rows] @ hits[rows]) / np.maximum(weights[:, rows] @ n[rows], 1)[:, None]
            for rows in (run.set_of_prompt == i for i in range(len(run.sets)))
        ]
    )
    own = [run.sets.index(name) for name in top]
    scores = [
        rates[i, :, at] - np.delete(rates[:, :, at], i, axis=0).max(axis=0)
        for at, i in enumerate(own)
    ]
    return np.asarray(np.mean(scores, axis=0))


def _rates(
    run: Run, stored: _Stored, feature_id: int, chosen: Sequence[int]
) -> dict[int, dict[str, float]]:
    rates = {}
    for layer in chosen:
        if feature_id < run.saes[layer].d_sae:
            _, scored = stored.layer(layer)
            fires = stored.fires(Feature(layer, feature_id))[scored]
            owner = run.set_of_prompt[run.token_prompt[scored]]
            hits = np.bincount(owner, weights=fires, minlength=len(run.sets))
            n = np.bincount(owner, minlength=len(run.sets))
            rates[layer] = {name: float(hits[i] / max(1, n[i])) for i, name in enumerate(run.sets)}
    return rates


def _follow(
    stored: _Stored, origins: Sequence[Feature], chosen: Sequence[int], cosines: Cosines | None
) -> list[Match]:
    """Each origin up and down through the chosen layers, one step from every match to the next."""
    fires = {origin: stored.fires(origin) for origin in origins}
    matches = []
    for step in (1, -1):
        followed = {origin: origin for origin in origins}
        for source, target in _steps(chosen, step):
            moving = [o for o, at in followed.items() if at.layer == source]
            if not moving:
                continue
            directions = cosines([followed[o] for o in moving], target) if cosines else None
            for row, origin in enumerate(moving):
                match = _match(
                    stored,
                    fires[origin],
                    followed[origin],
                    target,
                    None if directions is None else directions[row],
                )
                if match is not None:
                    matches.append(replace(match, origin=origin))
                    followed[origin] = match.target
    return sorted(matches, key=lambda m: (origins.index(m.origin), m.target.layer))


def _steps(chosen: Sequence[int], step: int) -> list[tuple[int, int]]:
    ordered = list(chosen)[::step]
    return list(pairwise(ordered))


def _match(
    stored: _Stored,
    origin_fires: Bools,
    source: Feature,
    layer: int,
    cosine: npt.NDArray[np.float32] | None,
) -> Match | None:
    """The feature of `layer` with the largest sum of co-firing and cosine; None where nothing fires with it."""
    _, scored_source = stored.layer(source.layer)
    source_fires = stored.fires(source)
    features, scored = stored.layer(layer)
    both = scored & scored_source
    shared = _cofire(features, source_fires, both)
    if not len(shared[0]):
        return None
    ids, jaccard = shared
    total = jaccard if cosine is None else jaccard + np.maximum(cosine[ids], 0)
    best = int(np.argmax(total))
    target = Feature(layer, int(ids[best]))
    target_fires = stored.fires(target)
    either = int(((origin_fires | target_fires) & both).sum())
    return Match(
        origin=source,
        source=source,
        target=target,
        cosine=None if cosine is None else float(cosine[target.id]),
        cofire=float(jaccard[best]),
        cofire_origin=int((origin_fires & target_fires & both).sum()) / either if either else 0.0,
    )


def _cofire(features: LayerFeatures, fires: Bools, positions: Bools) -> tuple[Ints, Floats]:
    """Jaccard of one feature's firing with that of every feature of a layer that fires on some of its tokens."""
    counted = positions[features.token]
    with_it, together = np.unique(features.ids[counted & fires[features.token]], return_counts=True)
    ids, alone = np.unique(features.ids[counted], return_counts=True)
    total = alone[np.searchsorted(ids, with_it)]
    return with_it, together / (total + int((fires & positions).sum()) - together)
