"""The finding of a result as one sentence: the first line of a command and of a page."""

from collections.abc import Sequence

from saescope.analysis.contrast import Contrast, FeatureContrast, LayerContrast, SetContrast
from saescope.analysis.detection import Detection
from saescope.analysis.headline import rates_in_words
from saescope.analysis.layers import Layers
from saescope.analysis.profile import Profile


def contrast_sentence(result: Contrast) -> str:
    """Say in how many sets a feature is confirmed, in the layer that separates them most."""
    layer = best_layer(result)
    sets = result.layers[layer].sets
    n_confirmed = sum(one.confirmed > 0 for one in sets.values())
    if n_confirmed == 0:
        subject = "No set has"
    elif n_confirmed == len(sets):
        subject = "Both sets have" if n_confirmed == 2 else f"All {n_confirmed} sets have"
    else:
        subject = f"{n_confirmed} of {len(sets)} sets {'has' if n_confirmed == 1 else 'have'}"
    where = f"in layer {layer}"
    if len(result.layers) > 1:
        where += ", the layer whose best features separate the sets most"
    return f"{subject} a feature that is confirmed on held-out prompts {where}."


def layers_sentence(result: Layers) -> str:
    """Say which layer separates the sets best, and which are as good."""
    best = result.best if result.best is not None else next(iter(result.layers))
    figures = result.layers[best]
    low, high = figures.ci
    separation = f"{figures.separation:.2f} (95 % CI {low:.2f}-{high:.2f})"
    others = [n for n, layer in result.layers.items() if layer.as_good and n != best]
    if not others:
        as_good = "" if len(result.layers) == 1 else "; no other layer is as good"
    else:
        as_good = f"; {layer_list(others)} {'is' if len(others) == 1 else 'are'} as good"
    return (
        f"The sets separate best in layer {best}: separation {separation} on held-out "
        f"prompts{as_good}."
    )


def detection_sentence(result: Detection) -> str:
    """Say how many features detect the target, by which minimum, and how well the detector does."""
    rule = result.settings
    where = f"(≥ {100 * rule.min_rate:g} % of its prompts, ≤ {100 * rule.max_other:g} % elsewhere)"
    n = len(result.features)
    if n == 0:
        found = f"No feature by itself detects {result.target} on discovery prompts {where}"
    else:
        subject = "1 feature detects" if n == 1 else f"{n} features detect"
        found = f"{subject} {result.target} on discovery prompts {where}{_held_out(result)}"
    detector = result.classifier
    f1 = detector.holdout.f1
    if not detector.features or f1 is None:
        return f"{found}."
    names = ", ".join(map(str, detector.features))
    used = names if len(detector.features) == 1 else f"any of {names}"
    always = detector.holdout.always_f1 or 0.0
    doubt = f", no better than calling every prompt {result.target}" if f1 <= always else ""
    return f"{found}; {used} detects it with F1 {f1:.2f} on held-out prompts{doubt}."


def _held_out(result: Detection) -> str:
    """Say how many of the features hold on held-out prompts, with a headline's effect size."""
    headline = result.settings.headline
    n_hold = sum(
        one.holdout_passes and headline.allows(one.holdout_rate, one.holdout_other_rate)
        for one in result.features
    )
    minimum = f"on held-out prompts too, at {headline.words}"
    if n_hold:
        return f", {n_hold} of them {minimum}" if len(result.features) > 1 else f", and {minimum}"
    best = max(result.features, key=lambda one: one.holdout_rate - one.holdout_other_rate)
    rates = rates_in_words(best.holdout_rate, best.holdout_other_rate)
    return f", but none {minimum} (best: {best.feature} on {rates})"


def profile_sentence(result: Profile) -> str:
    """Say which set takes the most tokens per prompt, and how many sinks there are."""
    sinks = sum(sink.pos > 0 for sink in result.sinks)
    counted = f"{sinks or 'no'} sink{'' if sinks == 1 else 's'} after position 0"
    by_cost = sorted(result.sets, key=lambda name: result.sets[name].tokens_per_prompt)
    least, most = by_cost[0], by_cost[-1]
    per_prompt = result.sets[most].tokens_per_prompt
    if least == most:
        return f"{most} has {per_prompt:.1f} tokens per prompt; {counted}."
    return (
        f"{most} takes the most tokens per prompt, {per_prompt:.1f}: "
        f"{result.sets[most].ratio:.2f} times as many as {least}; {counted}."
    )


def layer_list(layers: Sequence[int]) -> str:
    """Write layers in words: `layer 2`, `layers 2 and 4`, `layers 1, 2 and 4`."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    *first, last = map(str, layers)
    return f"layers {', '.join(first)} and {last}"


def best_layer(result: Contrast) -> int:
    """Return the layer whose best features separate the sets most.

    Discovery prompts alone decide, so the held-out figures of that layer stay unbiased.
    """
    return max(result.layers, key=lambda n: _separation(result.layers[n]))


def _separation(layer: LayerContrast) -> float:
    best = (one.features[0] for one in layer.sets.values() if one.features)
    return sum(feature.discovery_score for feature in best)


def first_confirmed(one: SetContrast) -> FeatureContrast | None:
    """Return the confirmed feature that is best on the discovery prompts."""
    return next((feature for feature in one.features if feature.confirmed), None)


def confirmed_first(features: Sequence[FeatureContrast]) -> list[FeatureContrast]:
    """Return the features with the confirmed ones first, in their order otherwise."""
    return sorted(features, key=lambda feature: not feature.confirmed)
