"""What `detect` is asked and what it answers."""

from dataclasses import dataclass, field
from typing import Any, final

from saescope.analysis.classify import Scores
from saescope.analysis.measures import SetMeasures
from saescope.analysis.search import check_alpha
from saescope.errors import PromptError
from saescope.sources.catalog import Feature
from saescope.store.masking import Masking
from saescope.table import Table


@dataclass(frozen=True)
class DetectSettings:
    """Thresholds on shares of prompts, and how to search with them."""

    min_rate: float = 0.8
    "Smallest share of target prompts on which a feature fires."

    max_other: float = 0.2
    "Largest share of prompts of any other set on which a feature fires."

    max_k: int = 10
    "Maximum number of features in the classifier's OR-rule."

    alpha: float = 0.05
    "False discovery rate, of finding candidates and again of confirming them."

    shuffles: int = 100
    "How often the null control applies the thresholds with shuffled labels."

    seed: int = 0
    "Seed of the discovery/held-out split, the shuffles and the bootstrap."

    masking: Masking = field(default_factory=Masking)
    "Which positions count."

    def check(self) -> None:
        """Raises PromptError for a value that no search can use."""
        for name in ("min_rate", "max_other"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise PromptError(f"{name} must lie between 0 and 1, got {share:g}")
        if self.max_other >= self.min_rate:
            raise PromptError(
                f"max_other must be below min_rate, got {self.max_other:g} and {self.min_rate:g}"
            )
        check_alpha(self.alpha)
        if self.max_k < 1:
            raise PromptError(f"max_k must be at least 1, got {self.max_k}")
        if self.shuffles < 0:
            raise PromptError(f"shuffles must be 0 or more, got {self.shuffles}")
        self.masking.check()


@dataclass(frozen=True)
class DetectedFeature:
    """A feature that passes the thresholds on discovery prompts.

    Shares of prompts on which it fires at all, the other one the largest in another set; `holdout_passes` says whether
    the thresholds hold on held-out prompts too. `monolinguality` is the mean activation over the target's scored
    positions less that over the others' (Qwen-Scope's measure); features of one `group` fire on the same tokens.
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
    monolinguality: float
    group: int


@dataclass(frozen=True)
class PromptFirings:
    """Which of the detected features fire on a prompt."""

    id: str
    set: str
    split: str
    fires: list[Feature]


@dataclass(frozen=True)
class Classifier:
    """The OR-rule: its features, how it does on held-out prompts and on other sets, and what plainer detectors do."""

    layer: int
    features: list[Feature]
    discovery: Scores
    holdout: Scores
    baselines: dict[str, Scores]
    transfer: dict[str, tuple[Scores, dict[str, Scores]]]

    def to_dict(self) -> dict[str, Any]:
        """As plain values; the scores of the held-out part stand at the top."""
        return {
            "layer": self.layer,
            "features": [str(feature) for feature in self.features],
            **self.holdout.to_dict(),
            "discovery": self.discovery.to_dict(),
            "baselines": {name: scores.to_dict() for name, scores in self.baselines.items()},
            "transfer": {
                name: {**scores.to_dict(), "baselines": {b: s.to_dict() for b, s in others.items()}}
                for name, (scores, others) in self.transfer.items()
            },
        }


@final
@dataclass(frozen=True)
class Detection(Table):
    """The answer to `detect`."""

    run: str
    target: str
    against: list[str]
    settings: DetectSettings
    features: list[DetectedFeature]
    by_chance: float
    by_chance_95: float
    firings: list[PromptFirings]
    classifier: Classifier
    sets: dict[str, SetMeasures]
    masked: dict[int, tuple[int, int]]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope detect`, but for the edits file."""
        return {
            "target": self.target,
            "against": self.against,
            "features": [_feature_dict(f) for f in self.features],
            "by_chance": {
                "mean": self.by_chance,
                "q95": self.by_chance_95,
                "shuffles": self.settings.shuffles,
            },
            "firings": [{**vars(p), "fires": [str(f) for f in p.fires]} for p in self.firings],
            "classifier": self.classifier.to_dict(),
            "sets": {name: vars(one) for name, one in self.sets.items()},
            "masked": {
                str(n): {"pos0": pos0, "sinks": sinks} for n, (pos0, sinks) in self.masked.items()
            },
            "warnings": self.warnings,
            "run": self.run,
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row a feature that passes the thresholds."""
        return [_feature_dict(f) for f in self.features]


def _feature_dict(f: DetectedFeature) -> dict[str, Any]:
    return {**vars(f), "feature": str(f.feature), "holdout_ci": list(f.holdout_ci)}
