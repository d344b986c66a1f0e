"""Follow features from layer to layer.

Feature ids mean nothing from one layer to another, because every layer has its own SAE. A feature
is followed by what fires on the same tokens and, if decoders are at hand, writes in the same
direction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from saescope.sources.catalog import Feature
from saescope.store.arrays import Bools, Float32s, Ints
from saescope.store.masking import Masking
from saescope.store.run_positions import run_positions
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

    def tokens_of(self, feature: int) -> Ints:
        """Return the tokens on which a feature fires, scored or not, ascending."""
        begin, end = np.searchsorted(self._sorted_ids, [feature, feature + 1])
        return np.asarray(self.features.token[self._by_id[begin:end]])

    def fired_on(self, tokens: Ints) -> Ints:
        """Return the ids of all features that fire on these tokens."""
        counts = self.features.counts[tokens]
        ends = np.cumsum(counts, dtype=np.int64)
        shift = np.repeat(self.features.starts[tokens] - (ends - counts), counts)
        return np.asarray(self.features.ids[shift + np.arange(counts.sum())])

    @cached_property
    def _by_id(self) -> Ints:
        return np.argsort(self.features.ids, kind="stable")

    @cached_property
    def _sorted_ids(self) -> Ints:
        return np.asarray(self.features.ids[self._by_id].astype(np.int64))


class ScoredLayers:
    """A run's layers, read when needed; the last two stay in memory, as neighbours are compared."""

    def __init__(self, run: Run, masking: Masking) -> None:
        self.run = run
        self._masking = masking
        self._cache: dict[int, ScoredLayer] = {}
        self._n_fires: tuple[tuple[int, int], Ints] | None = None

    def __getitem__(self, layer: int) -> ScoredLayer:
        if layer not in self._cache:
            while len(self._cache) > 1:
                del self._cache[next(iter(self._cache))]
            features = self.run.features(layer)
            scored = run_positions(self.run, self._masking)[layer].scored
            self._cache[layer] = ScoredLayer(features, scored)
        return self._cache[layer]

    def n_fires(self, layer: int, other: int) -> Ints:
        """Count each feature of a layer on positions that both layers score, (d_sae,).

        The last counts are kept: many features are followed between the same two layers.
        """
        if self._n_fires is None or self._n_fires[0] != (layer, other):
            features = self[layer].features
            counted = (self[layer].scored & self[other].scored)[features.token]
            d_sae = self.run.saes[layer].d_sae
            self._n_fires = (layer, other), np.bincount(features.ids[counted], minlength=d_sae)
        return self._n_fires[1]

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
    origin_tokens = {o: layers[o.layer].tokens_of(o.id) for o in origins}
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
                match = _match(layers, current[origin], origin_tokens[origin], layer, cosine)
                if match is not None:
                    matches.append(replace(match, origin=origin))
                    current[origin] = match.target
    place = {origin: index for index, origin in enumerate(dict.fromkeys(origins))}
    return sorted(matches, key=lambda match: (place[match.origin], match.target.layer))


def _match(
    layers: ScoredLayers,
    source: Feature,
    origin_tokens: Ints,
    layer: int,
    cosine: Float32s | None,
) -> Match | None:
    """Return the feature of `layer` with the largest sum of co-firing and cosine.

    None if nothing fires together with the source.
    """
    source_layer, target_layer = layers[source.layer], layers[layer]
    scored = target_layer.scored & source_layer.scored
    tokens = source_layer.tokens_of(source.id)
    tokens = tokens[scored[tokens]]
    ids, n_together = np.unique(target_layer.fired_on(tokens), return_counts=True)
    if not len(ids):
        return None
    n_either = layers.n_fires(layer, source.layer)[ids] + len(tokens) - n_together
    cofire = n_together / n_either
    similarity = cofire
    if cosine is not None:
        similarity = cofire + np.maximum(cosine[ids], 0)
    best = int(np.argmax(similarity))
    target = Feature(layer, int(ids[best]))
    target_tokens = target_layer.tokens_of(target.id)
    return Match(
        origin=source,
        source=source,
        target=target,
        cosine=None if cosine is None else float(cosine[target.id]),
        cofire=float(cofire[best]),
        cofire_origin=_jaccard(
            origin_tokens[scored[origin_tokens]], target_tokens[scored[target_tokens]]
        ),
    )


def _jaccard(tokens: Ints, other_tokens: Ints) -> float:
    both = len(np.intersect1d(tokens, other_tokens, assume_unique=True))
    either = len(tokens) + len(other_tokens) - both
    return both / either if either else 0.0
