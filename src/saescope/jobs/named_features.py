"""Features that a request names, checked before a model or an SAE's weights are loaded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from saescope.control.edits import EditSet, FeatureCondition
from saescope.control.evaluation.behaviour import FeatureRule
from saescope.control.evaluation.judge import Judge
from saescope.errors import ArgumentError, SaescopeError
from saescope.sources.catalog import Feature
from saescope.sources.saes import SaeSource, ranges


@dataclass(frozen=True)
class NamedFeature:
    """A feature and what names it, for errors: `edit of 17/99`."""

    feature: Feature
    named_by: str


def features_of(edit_set: EditSet, judge: Judge | FeatureRule | None = None) -> list[NamedFeature]:
    """Return the features of edits, of their conditions, and of a judge."""
    named = list(_features_of_edits(edit_set))
    if isinstance(judge, FeatureRule):
        named += features_of_rule(judge)
    return named


def features_of_rule(rule: FeatureRule) -> list[NamedFeature]:
    """Return the features of a rule about replies."""
    return [
        NamedFeature(feature, f"behaviour {rule}: no SAE passed has {feature}")
        for feature in rule.features
    ]


def _features_of_edits(edit_set: EditSet) -> Iterator[NamedFeature]:
    for edit in edit_set.edits:
        if isinstance(edit.feature, Feature):
            yield NamedFeature(edit.feature, f"edit of {edit.name}")
        if isinstance(edit.when, FeatureCondition):
            yield NamedFeature(edit.when.feature, f"edit of {edit.name} when {edit.when}")


def check_features(
    source: SaeSource, layers: Sequence[int], k: int | None, features: Sequence[NamedFeature]
) -> None:
    """Raise SaescopeError for a k or a feature that the SAEs of these layers do not have."""
    if k is None and not features:
        return
    from saescope.engine.load import sae_shape

    widths: dict[int, int] = {}
    for layer in layers:
        widths[layer], has_k = sae_shape(source, layer)
        if k is not None and not has_k:
            raise ArgumentError("k", f"is {k}, but {source.files.name} has thresholds, not TopK")
        if k is not None and k > widths[layer]:
            name = f"{source.files.name}, layer {layer}"
            raise ArgumentError("k", f"is {k}, but {name} has {widths[layer]} features")
    for named in features:
        layer = named.feature.layer
        if layer not in widths:
            raise SaescopeError(
                f"{named.named_by}: layer {layer} is not among layers {ranges(sorted(widths))}"
            )
        if named.feature.id >= widths[layer]:
            raise SaescopeError(
                f"{named.named_by}: the SAE of layer {layer} has {widths[layer]} features "
                f"(ids 0-{widths[layer] - 1})"
            )
