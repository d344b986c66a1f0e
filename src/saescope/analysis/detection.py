"""Settings and results of `detect`."""

from dataclasses import dataclass, field
from typing import Any, final

from saescope.analysis.classifier import Classifier
from saescope.analysis.headline import Headline
from saescope.analysis.measures import SetMeasures
from saescope.arguments import Count, CountOrZero, Part, Seed, Share, check_arguments
from saescope.errors import ArgumentError
from saescope.sources.catalog import Feature
from saescope.store.masking import MaskedCounts, Masking
from saescope.store.sae_fit import SaeFits
from saescope.table import Table


@dataclass(frozen=True)
class DetectSettings:
    """Thresholds on shares of prompts, and how to search with them.

    >>> import saescope as ss
    >>> ss.DetectSettings(min_rate=0.1).check()
    Traceback (most recent call last):
    saescope.errors.ArgumentError: max_other must be below min_rate, got 0.2 and 0.1
    """

    min_rate: Share = 0.8
    "Smallest share of target prompts on which a feature fires."

    max_other: Share = 0.2
    "Largest share of prompts of any other set on which a feature fires."

    max_k: Count = 10
    "Maximum number of features in the classifier's OR-rule."

    alpha: Part = 0.05
    "False discovery rate, applied once to candidates and once to confirmation."

    shuffles: CountOrZero = 100
    "How often the null control applies the thresholds with shuffled labels."

    seed: Seed = 0
    "Seed of the discovery/held-out split, the shuffles and the bootstrap."

    headline: Headline = field(default_factory=Headline)
    "The minimum effect size of what the headline names, in shares of held-out prompts."

    masking: Masking = field(default_factory=Masking)
    "Which positions count."

    def check(self) -> None:
        """Raise ArgumentError for an invalid value."""
        check_arguments(self)
        if self.max_other >= self.min_rate:
            raise ArgumentError(
                "max_other",
                f"must be below min_rate, got {self.max_other:g} and {self.min_rate:g}",
            )


@final
@dataclass(frozen=True, repr=False)
class Detection(Table):
    """The result of `detect`.

    `by_chance` features pass the thresholds with shuffled labels, on average over the shuffles;
    in 95 % of them at most `by_chance_95` do. `detector` are the features that the classifier uses,
    whether they pass the thresholds or not.
    """

    shown = "feature prompt_rate prompt_other_rate other_set holdout_rate passes holdout_passes q"

    run: str
    target: str
    against: list[str]
    settings: DetectSettings
    features: list["DetectedFeature"]
    by_chance: float
    by_chance_95: float
    firings: list["PromptFirings"]
    classifier: Classifier
    sets: dict[str, SetMeasures]
    masked: dict[int, MaskedCounts]
    warnings: list[str]
    sae_fits: SaeFits
    first_by_tokens: Feature | None = None
    "The feature of the classifier's layer that `contrast` would put first for the target."
    detector: list["DetectedFeature"] = field(default_factory=list)

    @property
    def top_warnings(self) -> list[str]:
        """SAEs that do not fit."""
        return self.sae_fits.warnings

    def to_dict(self) -> dict[str, Any]:
        """Return the dict that `saescope detect --json` prints, without the edits file."""
        return {
            "target": self.target,
            "against": self.against,
            "features": [feature.to_dict() for feature in self.features],
            "detector": [feature.to_dict() for feature in self.detector],
            "by_chance": {
                "mean": self.by_chance,
                "q95": self.by_chance_95,
                "shuffles": self.settings.shuffles,
            },
            "firings": [firings.to_dict() for firings in self.firings],
            "classifier": self.classifier.to_dict(),
            "sets": {name: vars(measures) for name, measures in self.sets.items()},
            "masked": {str(layer): masked._asdict() for layer, masked in self.masked.items()},
            "settings": {
                "min_rate": self.settings.min_rate,
                "max_other": self.settings.max_other,
                **vars(self.settings.headline),
            },
            "sae_fit": self.sae_fits.to_dict(),
            "warnings": [*self.sae_fits.warnings, *self.warnings],
            "run": self.run,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per feature that passes the thresholds, then the detector's other ones."""
        return [feature.to_dict() for feature in [*self.features, *self.below_thresholds]]

    @property
    def below_thresholds(self) -> list["DetectedFeature"]:
        """The detector's features that do not pass the thresholds by themselves."""
        return [feature for feature in self.detector if not feature.passes]


@dataclass(frozen=True)
class DetectedFeature:
    """A feature that passes the thresholds on discovery prompts, or that the detector uses.

    Rates are shares of prompts on which it fires at all, `other_` the largest of any other set;
    `passes` and `holdout_passes` say whether the thresholds hold on discovery prompts and on
    held-out ones. `p`, `q`, `confirmed`
    and `holdout_q` are those of `contrast` for the target. `monolinguality` is
    the mean activation over the target's scored positions minus that over the others'
    (Qwen-Scope's measure). Features of one `group` fire on the same tokens.
    """

    feature: Feature
    prompt_rate: float
    prompt_other_rate: float
    other_set: str
    holdout_rate: float
    holdout_ci: tuple[float, float]
    holdout_other_rate: float
    holdout_passes: bool
    p: float
    q: float
    confirmed: bool
    holdout_q: float
    monolinguality: float
    group: int
    passes: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        return {**vars(self), "feature": str(self.feature), "holdout_ci": list(self.holdout_ci)}


@dataclass(frozen=True)
class PromptFirings:
    """The features that fire on a prompt, of those that pass and those that the detector uses."""

    id: str
    set: str
    split: str
    fires: list[Feature]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        return {**vars(self), "fires": [str(feature) for feature in self.fires]}
