"""Which features distinguish prompt sets, and whether they still do on held-out prompts.

A feature is confirmed in two steps (`search.py`) of one-sided Fisher tests: are a set's n prompts
over-represented among the n with the highest firing rates?

1. On discovery prompts: test (a) against all other prompts pooled, with Benjamini-Hochberg over the
   features that fire on enough prompts to be able to reach significance (Tarone 1990), and test (b)
   against every other set one by one, largest p ≤ alpha. Features that pass both are candidates.
2. On held-out prompts: test (b) again, with Benjamini-Hochberg over the candidates.

The null control repeats both steps with shuffled labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from saescope.analysis.contrast_figures import LayerEvidence
from saescope.analysis.counts import count_fires, mean_acts, refuse_unscored
from saescope.analysis.headline import Headline
from saescope.analysis.search import power_warnings, search, shuffled_confirmed
from saescope.analysis.stats import Interval
from saescope.arguments import Count, CountOrZero, Part, Seed, check_arguments
from saescope.errors import PromptError
from saescope.sources.catalog import Feature
from saescope.sources.splits import split_prompts
from saescope.store.arrays import Bools
from saescope.store.masking import MaskedCounts, Masking
from saescope.store.run_positions import run_positions
from saescope.store.runs import Run
from saescope.store.sae_fit import SaeFits
from saescope.table import Table


@dataclass(frozen=True)
class ContrastSettings:
    """How to contrast prompt sets, and how much of the result to show.

    >>> import saescope as ss
    >>> ss.ContrastSettings(n_top=3, shuffles=0).alpha
    0.05
    """

    alpha: Part = 0.05
    "False discovery rate of the candidates of a set and layer, and of those confirmed."

    n_top: Count = 10
    "Maximum number of features to show per set."

    shuffles: CountOrZero = 20
    "How often the null control repeats the search with shuffled labels."

    seed: Seed = 0
    "Seed of the discovery/held-out split and of the shuffles."

    headline: Headline = field(default_factory=Headline)
    "The minimum effect size of what the headline names."

    masking: Masking = field(default_factory=Masking)
    "Which positions count."

    def check(self) -> None:
        """Raise ArgumentError for an invalid value."""
        check_arguments(self)


def contrast(
    run: Run,
    settings: ContrastSettings | None = None,
    *,
    layers: Sequence[int] | None = None,
) -> "Contrast":
    """Return each set's features with the largest margin over every other set, best first.

    The margin is the firing rate in the set minus the highest rate in another set. Features are
    ranked by the margin on discovery prompts, `discovery_score`; `score` is the margin on all
    prompts. Both may be negative. `confirmed` marks features that also hold on held-out prompts.
    `layers` defaults to all. Raises PromptError for fewer than two sets or a set without a scored
    position, RunError for an unknown layer.

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
    is_discovery = np.array([subset == "discovery" for subset in split])
    holdout = run.prompts_per_set(~is_discovery)
    contrasted = {n: _contrast_layer(run, n, is_discovery, settings) for n in layers or run.layers}
    return Contrast(
        run=str(run.path),
        layers=contrasted,
        masked=_masked(run, list(contrasted.values())),
        settings=settings,
        discovery=run.prompts_per_set(is_discovery),
        holdout=holdout,
        warnings=power_warnings(holdout, settings.alpha),
        sae_fits=run.sae_fits(layers),
    )


@final
@dataclass(frozen=True, repr=False)
class Contrast(Table):
    """The result of `contrast`, for every layer of a run."""

    shown = "layer set feature rate holdout_rate other_set holdout_score confirmed"

    run: str
    layers: dict[int, "LayerContrast"]

    masked: MaskedCounts
    "Positions left out; in runs of earlier versions, where layers differ, the sum of their sinks."

    settings: ContrastSettings
    discovery: dict[str, int]
    holdout: dict[str, int]
    warnings: list[str]
    sae_fits: SaeFits

    @property
    def top_warnings(self) -> list[str]:
        """SAEs that do not fit."""
        return self.sae_fits.warnings

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-compatible dict that `saescope contrast --json` prints."""
        shuffles = self.settings.shuffles
        layers = list(self.layers.values())
        confirmed = sum(layer.shuffled_confirmed for layer in layers)
        return {
            "layers": {str(n): layer.to_dict(shuffles) for n, layer in self.layers.items()},
            "masked": self.masked._asdict(),
            "control": {"shuffles": shuffles, "confirmed": confirmed},
            "split": {"discovery": self.discovery, "holdout": self.holdout},
            "settings": {
                "alpha": self.settings.alpha,
                "seed": self.settings.seed,
                **vars(self.settings.headline),
                **vars(self.settings.masking),
            },
            "sae_fit": self.sae_fits.to_dict(),
            "warnings": [*self.sae_fits.warnings, *self.warnings],
            "run": self.run,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per layer, set and feature."""
        return [
            {"layer": n, "set": name, **feature.to_dict()}
            for n, layer in self.layers.items()
            for name, result in layer.sets.items()
            for feature in result.features
        ]


@dataclass(frozen=True)
class LayerContrast:
    """One layer: a result per set, and what was left out.

    `tested`: number of features that fire on enough discovery prompts to be able to reach
    significance.
    `shuffled_confirmed`: number confirmed under shuffled labels, in all shuffles together.
    """

    sets: dict[str, "SetContrast"]
    masked_pos0: int
    masked_sinks: int
    tested: int
    shuffled_confirmed: int

    def to_dict(self, shuffles: int) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        return {
            "sets": {name: result.to_dict() for name, result in self.sets.items()},
            "masked": {"pos0": self.masked_pos0, "sinks": self.masked_sinks},
            "tested": self.tested,
            "control": {"shuffles": shuffles, "confirmed": self.shuffled_confirmed},
        }


@dataclass(frozen=True)
class SetContrast:
    """One set: scored tokens, prompts, how many features passed, and the best, passed or not."""

    tokens: int
    prompts: int
    candidates: int
    confirmed: int
    features: list["FeatureContrast"]
    first_by_prompts: Feature
    (
        "The feature with the largest margin in the share of discovery prompts it fires on, which "
        "is how `detect` ranks."
    )
    headline: "FeatureContrast | None"
    (
        "Of the confirmed features with the minimum effect on held-out prompts, the best on "
        "discovery prompts; it may stand below those in `features`."
    )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        return {
            **vars(self),
            "features": [feature.to_dict() for feature in self.features],
            "first_by_prompts": str(self.first_by_prompts),
            "headline": self.headline and self.headline.to_dict(),
        }

    @property
    def best(self) -> "FeatureContrast | None":
        """The headline's feature; without one, the best on discovery prompts, if any fires."""
        return self.headline or next(iter(self.features), None)

    def shown(self, n_top: int | None = None) -> list["FeatureContrast"]:
        """Return the best features, confirmed ones first, and always the headline's."""
        best = self.features[:n_top]
        if self.headline is not None and self.headline not in best:
            best = [self.headline, *best]
        return sorted(best, key=lambda feature: not feature.confirmed)


@dataclass(frozen=True)
class FeatureContrast:
    """One feature in one set, compared with the other sets.

    A rate is the share of scored positions on which the feature fires; a prompt rate is the share
    of prompts. `other_` marks the highest rate in any other set, a score is the rate minus that
    one, and intervals are at 95 %.

    - All prompts: `rate`, `other_rate`, `other_set`, `score`, `rate_ci`, `prompt_rate`,
      `prompt_other_rate`, `ci` (of `prompt_rate`) and `mean_act` (where the feature fires).
    - Discovery prompts: `p` and `q` against all other prompts together, `discovery_score`.
    - Held-out prompts: `holdout_*`; `holdout_p` is the largest p against another set, and
      `holdout_q` adjusts it for the number of candidates (1 if the feature is not one). Tables and
      pages show `holdout_q` as q.
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
    "Adjusted p of the discovery test; the q that tables show is `holdout_q`."

    discovery_score: float
    confirmed: bool
    holdout_rate: float
    holdout_other_rate: float
    holdout_score: float
    holdout_score_ci: tuple[float, float]
    holdout_p: float
    holdout_q: float
    mean_act: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        lists = {k: list(v) for k, v in vars(self).items() if isinstance(v, tuple)}
        return {**vars(self), **lists, "feature": str(self.feature)}


def _masked(run: Run, layers: Sequence[LayerContrast]) -> MaskedCounts:
    pos0 = max((layer.masked_pos0 for layer in layers), default=0)
    sinks = [layer.masked_sinks for layer in layers]
    return MaskedCounts(pos0, max(sinks, default=0) if run.sinks_across_layers else sum(sinks))


def _contrast_layer(
    run: Run, layer: int, is_discovery: Bools, settings: ContrastSettings
) -> LayerContrast:
    features = run.features(layer)
    positions = run_positions(run, settings.masking)[layer]
    counts = count_fires(run, features, positions.scored)
    refuse_unscored(run, counts)
    discovery, holdout = counts.of_prompts(is_discovery), counts.of_prompts(~is_discovery)
    search_result = search(discovery, holdout, settings.alpha)
    means = mean_acts(run, features, positions.scored, counts.features)
    evidence = LayerEvidence(counts, discovery, holdout, search_result, means)
    rng = np.random.default_rng(settings.seed)
    return LayerContrast(
        sets=_set_contrasts(run, layer, evidence, settings),
        masked_pos0=positions.masked_pos0,
        masked_sinks=positions.masked_sinks,
        tested=int(search_result.tested.sum()),
        shuffled_confirmed=shuffled_confirmed(
            discovery, holdout, settings.alpha, settings.shuffles, rng
        ),
    )


def _set_contrasts(
    run: Run, layer: int, evidence: LayerEvidence, settings: ContrastSettings
) -> dict[str, SetContrast]:
    """Return the top features of every set."""
    counts, result = evidence.counts, evidence.search_result
    top, headlines = evidence.shown(settings.n_top), evidence.headlines(settings.headline)
    sets, columns = (np.concatenate(both) for both in zip(top, headlines, strict=True))
    field_arrays = evidence.field_arrays(run.sets, sets, columns)
    rows = []
    for row, column in enumerate(columns.tolist()):
        values = {name: _element(array, row) for name, array in field_arrays.items()}
        rows.append(FeatureContrast(Feature(layer, int(counts.features[column])), **values))
    features: dict[str, list[FeatureContrast]] = {name: [] for name in run.sets}
    n_top = len(top[0])
    for set_index, feature in zip(sets[:n_top].tolist(), rows, strict=False):
        features[run.sets[set_index]].append(feature)
    headline_of = dict(zip(sets[n_top:].tolist(), rows[n_top:], strict=True))
    by_prompts = evidence.first_by_prompts()
    n_tokens = np.bincount(counts.labels, weights=counts.n, minlength=counts.n_sets)
    return {
        name: SetContrast(
            tokens=int(n_tokens[i]),
            prompts=int(counts.prompts_per_set[i]),
            candidates=int(result.candidates[i].sum()),
            confirmed=int(result.confirmed[i].sum()),
            features=features[name],
            first_by_prompts=Feature(layer, int(counts.features[by_prompts[i]])),
            headline=headline_of.get(i),
        )
        for i, name in enumerate(run.sets)
    }


def _element(values: Any, index: int) -> Any:
    """Return one element as a plain value."""
    return values.at(index) if isinstance(values, Interval) else values[index].item()
