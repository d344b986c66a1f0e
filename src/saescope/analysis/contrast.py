"""Which features set prompt sets apart, and whether they still do on held-out prompts.

The unit is the prompt. Candidates come from discovery prompts: a set's prompts against all others,
with Benjamini-Hochberg over the dictionary, and above each other set alone. They are confirmed on
held-out prompts, again against each other set, with Benjamini-Hochberg over the candidates. The
same search with shuffled labels is the null control. All of it comes from a stored run; no model
is needed to ask again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from saescope.analysis import stats
from saescope.analysis.counts import FiringCounts, count_fires, mean_acts, refuse_unscored
from saescope.analysis.rates import (
    largest_other,
    nearest_set,
    rate_interval,
    score,
    score_interval,
)
from saescope.analysis.search import (
    SearchResult,
    check_alpha,
    hardest_p,
    search,
    shuffled_confirmed,
)
from saescope.analysis.stats import Interval
from saescope.errors import PromptError
from saescope.sources.catalog import Feature
from saescope.sources.prompts import split_prompts
from saescope.store.arrays import Bools, Floats, Ints
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.table import Table


@dataclass(frozen=True)
class ContrastSettings:
    """How to contrast prompt sets, and how much of the result to show.

    >>> import saescope as ss
    >>> ss.ContrastSettings(n_top=3, shuffles=0).alpha
    0.05
    """

    alpha: float = 0.05
    "False discovery rate, of finding candidates and again of confirming them."

    n_top: int = 10
    "Features to show per set."

    shuffles: int = 20
    "How often the null control repeats the search with shuffled labels."

    seed: int = 0
    "Seed of the discovery/held-out split and of the shuffles."

    masking: Masking = field(default_factory=Masking)
    "Which positions count."

    def check(self) -> None:
        """Raises PromptError for a value that no search can use."""
        check_alpha(self.alpha)
        if self.n_top < 1:
            raise PromptError(f"n_top must be at least 1, got {self.n_top}")
        if self.shuffles < 0:
            raise PromptError(f"shuffles must be 0 or more, got {self.shuffles}")
        self.masking.check()


def contrast(
    run: Run,
    settings: ContrastSettings | None = None,
    *,
    layers: Sequence[int] | None = None,
) -> "Contrast":
    """Features that set each prompt set of the run apart from every other one.

    Default: all layers of the run. Raises PromptError for fewer than two sets or for a set without
    a scored position, RunError for a layer that the run does not hold.

    >>> import tempfile
    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", [2])
    >>> saes = [ss.load_sae("saescope-tiny-sae", 2)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = ss.extract(lm, saes, ss.bundled_prompts()[:3], f"{folder}/run")
    ...     result = ss.contrast(run, ss.ContrastSettings(shuffles=0))
    >>> result.layers[2].sets["japanese"].features[0].confirmed
    True
    """
    settings = settings or ContrastSettings()
    settings.check()
    if len(run.sets) < 2:
        raise PromptError(
            f"contrast needs at least two sets, {run.path} has one ({run.sets[0]}): "
            "add a set to compare"
        )
    split = split_prompts(run.prompts, seed=settings.seed)
    is_discovery = np.array([part == "discovery" for part in split])
    holdout = _prompts_per_set(run, ~is_discovery)
    return Contrast(
        run=str(run.path),
        layers={n: _layer(run, n, is_discovery, settings) for n in layers or run.layers},
        settings=settings,
        discovery=_prompts_per_set(run, is_discovery),
        holdout=holdout,
        warnings=_power_warnings(holdout, settings.alpha),
    )


@final
@dataclass(frozen=True)
class Contrast(Table):
    """The result of `contrast`, for every layer of a run."""

    run: str
    layers: dict[int, "LayerContrast"]
    settings: ContrastSettings
    discovery: dict[str, int]
    holdout: dict[str, int]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope contrast`."""
        shuffles = self.settings.shuffles
        layers = list(self.layers.values())
        confirmed = sum(layer.shuffled_confirmed for layer in layers)
        return {
            "layers": {str(n): layer.to_dict(shuffles) for n, layer in self.layers.items()},
            "masked": {
                "pos0": max((layer.masked_pos0 for layer in layers), default=0),
                "sinks": sum(layer.masked_sinks for layer in layers),
            },
            "control": {"shuffles": shuffles, "confirmed": confirmed},
            "split": {"discovery": self.discovery, "holdout": self.holdout},
            "settings": {
                "alpha": self.settings.alpha,
                "seed": self.settings.seed,
                **vars(self.settings.masking),
            },
            "warnings": self.warnings,
            "run": self.run,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer, set and feature."""
        return [
            {"layer": n, "set": name, **feature.to_dict()}
            for n, layer in self.layers.items()
            for name, result in layer.sets.items()
            for feature in result.features
        ]


@dataclass(frozen=True)
class LayerContrast:
    """One layer: a result per set, what was masked, and what shuffled labels gave."""

    sets: dict[str, "SetContrast"]
    masked_pos0: int
    masked_sinks: int
    tested: int
    shuffled_confirmed: int

    def to_dict(self, shuffles: int) -> dict[str, Any]:
        """As plain values."""
        return {
            "sets": {name: result.to_dict() for name, result in self.sets.items()},
            "masked": {"pos0": self.masked_pos0, "sinks": self.masked_sinks},
            "tested": self.tested,
            "control": {"shuffles": shuffles, "confirmed": self.shuffled_confirmed},
        }


@dataclass(frozen=True)
class SetContrast:
    """One set's features, best on discovery prompts first, and how much they rest on."""

    tokens: int
    prompts: int
    candidates: int
    confirmed: int
    features: list["FeatureContrast"]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {**vars(self), "features": [feature.to_dict() for feature in self.features]}


@dataclass(frozen=True)
class FeatureContrast:
    """One feature in one set against the others.

    Rates are shares of scored positions, or of prompts if so named; `other_` is the largest rate
    of any other set, a score the difference of the two. Intervals are at 95 %.
    """

    feature: Feature
    rate: float
    other_rate: float
    other_set: str
    score: float
    rate_ci: tuple[float, float]
    prompt_rate: float
    prompt_other_rate: float
    ci: tuple[float, float]
    p: float
    q: float
    discovery_score: float
    confirmed: bool
    holdout_rate: float
    holdout_other_rate: float
    holdout_score: float
    holdout_score_ci: tuple[float, float]
    holdout_p: float
    mean_act: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        lists = {name: list(v) for name, v in vars(self).items() if isinstance(v, tuple)}
        return {**vars(self), **lists, "feature": str(self.feature)}


@dataclass(frozen=True)
class _Evidence:
    """One layer's firings in all prompts and in each part, and what the search found."""

    counts: FiringCounts
    discovery: FiringCounts
    holdout: FiringCounts
    found: SearchResult
    mean_acts: Floats


def _layer(run: Run, layer: int, is_discovery: Bools, settings: ContrastSettings) -> LayerContrast:
    features = run.features(layer)
    positions = settings.masking.apply(run.token_pos, features.norms)
    counts = count_fires(run, features, positions.scored)
    refuse_unscored(run, counts)
    discovery, holdout = counts.of_prompts(is_discovery), counts.of_prompts(~is_discovery)
    found = search(discovery, holdout, settings.alpha)
    means = mean_acts(run, features, positions.scored, counts.features)
    evidence = _Evidence(counts, discovery, holdout, found, means)
    sets = {}
    for i, name in enumerate(run.sets):
        sets[name] = _set_contrast(run, layer, i, evidence, settings.n_top)
    rng = np.random.default_rng(settings.seed)
    return LayerContrast(
        sets=sets,
        masked_pos0=positions.masked_pos0,
        masked_sinks=positions.masked_sinks,
        tested=int(found.tested.sum()),
        shuffled_confirmed=shuffled_confirmed(
            discovery, holdout, settings.alpha, settings.shuffles, rng
        ),
    )


def _set_contrast(run: Run, layer: int, i: int, evidence: _Evidence, n_top: int) -> SetContrast:
    """Set i's features, ranked by discovery prompts alone.

    So the held-out figures of the first ones are unbiased.
    """
    counts = evidence.counts
    in_set = counts.labels == i
    ranked = np.argsort(-score(evidence.discovery.rates(), i), kind="stable")[:n_top]
    shown = ranked[counts.rates()[i, ranked] > 0]
    columns = _columns(run.sets, i, evidence, shown)
    features = []
    for at, column in enumerate(shown.tolist()):
        feature = Feature(layer, int(counts.features[column]))
        values = {name: _at(values, at) for name, values in columns.items()}
        features.append(FeatureContrast(feature=feature, **values))
    return SetContrast(
        tokens=int(counts.n[in_set].sum()),
        prompts=int(in_set.sum()),
        candidates=int(evidence.found.candidates[i].sum()),
        confirmed=int(evidence.found.confirmed[i].sum()),
        features=features,
    )


def _columns(sets: Sequence[str], i: int, evidence: _Evidence, shown: Ints) -> Mapping[str, Any]:
    """Every field of FeatureContrast but `feature`, for the shown features of set i."""
    counts, holdout = evidence.counts.of_features(shown), evidence.holdout.of_features(shown)
    rates, prompt_rates, holdout_rates = counts.rates(), counts.prompt_rates(), holdout.rates()
    nearest = nearest_set(rates, i)
    n_prompts = ((counts.labels == i) & (counts.n > 0)).sum()
    return {
        "rate": rates[i],
        "other_rate": largest_other(rates, i),
        "other_set": np.array(sets)[nearest],
        "score": score(rates, i),
        "rate_ci": rate_interval(counts, i),
        "prompt_rate": prompt_rates[i],
        "prompt_other_rate": largest_other(prompt_rates, i),
        "ci": stats.wilson(prompt_rates[i], float(n_prompts)),
        "p": evidence.found.p[i, shown],
        "q": evidence.found.q[i, shown],
        "discovery_score": score(evidence.discovery.rates(), i)[shown],
        "confirmed": evidence.found.confirmed[i, shown],
        "holdout_rate": holdout_rates[i],
        "holdout_other_rate": largest_other(holdout_rates, i),
        "holdout_score": score(holdout_rates, i),
        "holdout_score_ci": score_interval(holdout, i),
        "holdout_p": hardest_p(holdout, i),
        "mean_act": evidence.mean_acts[i, shown],
    }


def _at(values: Any, index: int) -> Any:
    """One element as a plain value."""
    if isinstance(values, Interval):
        return values.at(index)
    return values[index].item()


def _prompts_per_set(run: Run, rows: Bools) -> dict[str, int]:
    n_prompts = np.bincount(run.set_of_prompt[rows], minlength=len(run.sets))
    return dict(zip(run.sets, n_prompts.tolist(), strict=True))


def _power_warnings(holdout: dict[str, int], alpha: float) -> list[str]:
    smallest, second, *_ = sorted(holdout.values())
    if stats.least_p(smallest, second, smallest) <= alpha:
        return []
    return [
        f"no feature can be confirmed: the smallest sets hold out {smallest} and {second} prompts; "
        "give 8 prompts a set or more"
    ]
