"""How well a layer separates prompt sets, and which layer does best.

Separation is the mean over sets of the held-out score of each set's best feature: its firing rate
in the set minus the highest rate in any other set. Features are selected on discovery prompts, so a
layer's separation is unbiased. The best layer is the one with the largest separation; of equal
ones, the one that also separates better on discovery prompts, then the lowest.
"""

from collections.abc import Mapping

import numpy as np

from saescope.analysis.contrast import Contrast, FeatureContrast, SetContrast


def best_features(sets: Mapping[str, SetContrast]) -> dict[str, FeatureContrast]:
    """Return the feature of each set that is best on discovery prompts, if any fires in it."""
    return {name: one.features[0] for name, one in sets.items() if one.features}


def separation(sets: Mapping[str, SetContrast]) -> float:
    """Return the mean held-out score of the sets' best features; 0 for a set without one."""
    return sum(best.holdout_score for best in best_features(sets).values()) / max(len(sets), 1)


def best_layer(result: Contrast) -> int:
    """Return the layer with the largest separation."""

    def merit(number: int) -> tuple[float, float, int]:
        sets = result.layers[number].sets
        discovery = sum(best.discovery_score for best in best_features(sets).values())
        # Equal means of the same scores may differ in their last bits.
        return round(separation(sets), 9), round(discovery / max(len(sets), 1), 9), -number

    return max(result.layers, key=merit)


def gain_of_choice(drawn: Mapping[int, np.ndarray]) -> float:
    """Return how much choosing the best of several layers raises its separation by chance alone.

    `drawn` has the separation of each layer in every bootstrap draw. In each, the chosen layer's
    value is compared with that layer's mean over all draws.
    """
    values = np.stack(list(drawn.values()))
    chosen = values.argmax(axis=0)
    means = values.mean(axis=1)
    return float(np.mean(values[chosen, np.arange(values.shape[1])] - means[chosen]))
