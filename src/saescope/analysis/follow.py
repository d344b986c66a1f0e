"""Follow features from layer to layer.

Feature ids mean nothing from one layer to another, because every layer has its own SAE. A feature
is followed by what fires on the same tokens and, if decoders are at hand, writes in the same
direction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from saescope.sources.catalog import Feature
from saescope.store.arrays import Bools, Float32s, Floats, Ints
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.store.tables import LayerFeatures

# Cosines of some features' decoder directions with all of a layer: (features, d_sae).
Cosines = Callable[[Sequence[Feature], int], Float32s]


@dataclass(frozen=True)
class Match:
    """A feature and its counterpart at another layer.

    `cofire` is the number of positions where both fire over that where either does,
    `cofire_origin` the same with the feature that is followed. `cosine` is that of the decoder
    directions, None if decoders are not at hand.
    """

    origin: Feature
    source: Feature
    target: Feature
    cosine: float | None
    cofire: float
    cofire_origin: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        return {
            "from": str(self.source),
            "to": str(self.target),
            "cosine": self.cosine,
            "cofire": self.cofire,
            "origin": str(self.origin),
            "cofire_origin": self.cofire_origin,
        }


@dataclass(frozen=True)
class ScoredLayer:
    """One layer's features and its scored positions."""

    features: LayerFeatures
    scored: Bools


class ScoredLayers:
    """A run's layers, read when needed; the last two stay in memory, as neighbours are compared."""

    def __init__(self, run: Run, masking: Masking) -> None:
        self.run = run
        self._masking = masking
        self._cache: dict[int, ScoredLayer] = {}

    def __getitem__(self, layer: int) -> ScoredLayer:
        if layer not in self._cache:
            while len(self._cache) > 1:
                del self._cache[next(iter(self._cache))]
            features = self.run.features(layer)
            scored = self._masking.apply(self.run.token_pos, features.norms).scored
            self._cache[layer] = ScoredLayer(features, scored)
        return self._cache[layer]

    def fires(self, feature: Feature) -> Bools:
        """Return whether a feature fires on each token, scored or not, (tokens,)."""
        return self[feature.layer].features.fires(feature.id)


def follow(
    layers: ScoredLayers,
    origins: Sequence[Feature],
    numbers: Sequence[int],
    cosines: Cosines | None,
) -> list[Match]:
    """Follow each origin up and down through the layers `numbers`, from each match to the next."""
    origin_fires = {origin: layers.fires(origin) for origin in origins}
    matches = []
    for order in (numbers, numbers[::-1]):
        current = {origin: origin for origin in origins}
        for source_layer, layer in pairwise(order):
            moving = [o for o, feature in current.items() if feature.layer == source_layer]
            if not moving:
                continue
            rows: Sequence[Float32s | None] = [None] * len(moving)
            if cosines is not None:
                rows = list(cosines([current[origin] for origin in moving], layer))
            for origin, cosine in zip(moving, rows, strict=True):
                match = _match(layers, current[origin], origin_fires[origin], layer, cosine)
                if match is not None:
                    matches.append(replace(match, origin=origin))
                    current[origin] = match.target
    return sorted(matches, key=lambda match: (origins.index(match.origin), match.target.layer))


def _match(
    layers: ScoredLayers,
    source: Feature,
    origin_fires: Bools,
    layer: int,
    cosine: Float32s | None,
) -> Match | None:
    """Return the feature of `layer` with the largest sum of co-firing and cosine.

    None if nothing fires together with the source.
    """
    source_fires = layers.fires(source)
    source_scored = layers[source.layer].scored
    target_layer = layers[layer]
    scored = target_layer.scored & source_scored
    ids, cofire = _cofire(target_layer.features, source_fires, scored)
    if not len(ids):
        return None
    similarity = cofire
    if cosine is not None:
        similarity = cofire + np.maximum(cosine[ids], 0)
    best = int(np.argmax(similarity))
    target = Feature(layer, int(ids[best]))
    return Match(
        origin=source,
        source=source,
        target=target,
        cosine=None if cosine is None else float(cosine[target.id]),
        cofire=float(cofire[best]),
        cofire_origin=_jaccard(origin_fires, layers.fires(target), scored),
    )


def _cofire(features: LayerFeatures, fires: Bools, positions: Bools) -> tuple[Ints, Floats]:
    """Return the ids of features that fire together with one feature, and their Jaccards."""
    counted = positions[features.token]
    together = counted & fires[features.token]
    ids, n_together = np.unique(features.ids[together], return_counts=True)
    all_ids, n_fires = np.unique(features.ids[counted], return_counts=True)
    n_either = n_fires[np.searchsorted(all_ids, ids)] + int((fires & positions).sum()) - n_together
    return ids, n_together / n_either


def _jaccard(fires: Bools, other_fires: Bools, positions: Bools) -> float:
    either = int(((fires | other_fires) & positions).sum())
    if either == 0:
        return 0.0
    return int((fires & other_fires & positions).sum()) / either
