"""The finding of a result as one sentence: the first line of a command and of a page."""

from collections.abc import Mapping, Sequence

from saescope.analysis.contrast import Contrast, FeatureContrast
from saescope.analysis.detection import Detection
from saescope.analysis.headline import Headline, listed, rates_in_words
from saescope.analysis.layers import Layers
from saescope.analysis.profile import Profile
from saescope.analysis.separation import best_features, best_layer

_SHOWN_GAIN = 0.005


def contrast_sentence(result: Contrast) -> str:
    """Say which sets have a feature with an effect in the layer that separates them most."""
    layer = best_layer(result)
    where = f"in layer {layer}"
    if len(result.layers) > 1:
        where += ", which separates the sets best,"
    sets, headline = result.layers[layer].sets, result.settings.headline
    headlines = {name: one.headline for name, one in sets.items()}
    return _headline_sentence(headlines, best_features(sets), headline, where)


def layers_sentence(result: Layers) -> str:
    """Say which layer separates the sets best, which are as good, and what its features do."""
    best = result.best if result.best is not None else next(iter(result.layers))
    figures = result.layers[best]
    low, high = figures.ci
    separation = f"{figures.separation:.2f} (95 % CI {low:.2f}-{high:.2f})"
    others = [n for n, layer in result.layers.items() if layer.as_good and n != best]
    if not others:
        as_good = "" if len(result.layers) == 1 else "; no other layer is as good"
    else:
        as_good = f"; {layer_list(others)} {'is' if len(others) == 1 else 'are'} as good"
    chosen = ""
    if result.gain_of_choice >= _SHOWN_GAIN:
        chosen = f", about {result.gain_of_choice:.2f} of it by the choice among the layers"
    there = _headline_sentence(figures.headlines, figures.sets, result.headline, "there")
    return (
        f"The sets separate best in layer {best}: separation {separation} on held-out "
        f"prompts{chosen}{as_good}. {there}"
    )


def _headline_sentence(
    headlines: Mapping[str, FeatureContrast | None],
    best: Mapping[str, FeatureContrast],
    headline: Headline,
    where: str,
) -> str:
    """Say how many sets have a headline's feature, and name the others' best with its rates."""
    without = [name for name, feature in headlines.items() if feature is None]
    n = len(headlines) - len(without)
    if n == 0:
        subject = "No set has"
    elif not without:
        subject = "Both sets have" if n == 2 else f"All {n} sets have"
    else:
        subject = f"{n} of {len(headlines)} sets {'has' if n == 1 else 'have'}"
    found = f"{subject} a feature {where} that is confirmed on held-out prompts at {headline.words}"
    if not without:
        return f"{found}."
    bests = listed([f"{name} ({_best_in_words(best.get(name))})" for name in without])
    return f"{found}; without one: {bests}."


def _best_in_words(best: FeatureContrast | None) -> str:
    if best is None:
        return "no feature fires"
    rates = rates_in_words(best.holdout_rate, best.holdout_other_rate)
    return f"best {best.feature}: {rates}{'' if best.confirmed else ', not confirmed'}"


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
