"""Which features set prompt sets apart, and whether they still do on prompts that had no part in finding them.

The unit is the prompt. Candidates come from the discovery part: a set's prompts against all others, with
Benjamini-Hochberg over the dictionary, and ahead of each other set alone. They are confirmed on the held-out part,
again against each other set, with Benjamini-Hochberg over the candidates. The same search with shuffled labels says
what it finds where nothing is. All of it comes from a stored run; no model is needed to ask again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from saescope.analysis import stats
from saescope.analysis.counts import Counts, count_fires, mean_acts, refuse_unscored
from saescope.analysis.search import Found, check_alpha, find, hardest_p, shuffled_confirmed
from saescope.analysis.stats import Bools, Floats
from saescope.errors import PromptError
from saescope.sources.catalog import Feature
from saescope.sources.prompts import split_prompts
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.table import Table


@dataclass(frozen=True)
class FeatureContrast:
    """One feature in one set against the others; rates are shares of scored positions, or of prompts where named so."""

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


@dataclass(frozen=True)
class SetContrast:
    """One set's features, best on the discovery part first, and how much they rest on."""

    tokens: int
    prompts: int
    candidates: int
    confirmed: int
    features: list[FeatureContrast]


@dataclass(frozen=True)
class LayerContrast:
    """One layer: a result for every set, what was masked, and what shuffled labels gave."""

    sets: dict[str, SetContrast]
    masked_pos0: int
    masked_sinks: int
    tested: int
    shuffled_confirmed: int


@final
@dataclass(frozen=True)
class Contrast(Table):
    """The answer to `contrast`, for every layer of a run."""

    run: str
    layers: dict[int, LayerContrast]
    settings: "ContrastSettings"
    discovery: dict[str, int]
    holdout: dict[str, int]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope contrast`."""
        return {
            "layers": {str(n): {"sets": {s: _set_dict(c) for s, c in layer.sets.items()}, "masked": _masked([layer]),
                                "tested": layer.tested,
                                "control": {"shuffles": self.settings.shuffles, "confirmed": layer.shuffled_confirmed}}
                       for n, layer in self.layers.items()},
            "masked": _masked(list(self.layers.values())),
            "control": {"shuffles": self.settings.shuffles,
                        "confirmed": sum(layer.shuffled_confirmed for layer in self.layers.values())},
            "split": {"discovery": self.discovery, "holdout": self.holdout},
            "settings": {"alpha": self.settings.alpha, "seed": self.settings.seed,
                         "keep_pos0": self.settings.masking.keep_pos0, "keep_sinks": self.settings.masking.keep_sinks,
                         "sink_ratio": self.settings.masking.sink_ratio, "last": self.settings.masking.last},
            "warnings": self.warnings,
            "run": self.run,
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """A row a layer, set and feature."""
        return [
            {"layer": n, "set": name, **feature_dict(feature)}
            for n, layer in self.layers.items()
            for name, one in layer.sets.items()
            for feature in one.features
        ]


@dataclass(frozen=True)
class ContrastSettings:
    """How to contrast prompt sets, and how much of the result to show."""

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
) -> Contrast:
    """Features that set each prompt set of the run apart from every other one.

    Raises PromptError for fewer than two sets or a set without a scored position.
    """
    settings = settings or ContrastSettings()
    settings.check()
    if len(run.sets) < 2:
        raise PromptError(
            f"contrast needs at least two sets, {run.path} has one ({run.sets[0]}): add a set to compare"
        )
    parts = np.array(
        [part == "discovery" for part in split_prompts(run.prompts, seed=settings.seed)]
    )
    results = {n: _layer(run, n, parts, settings) for n in layers or run.layers}
    sizes = {name: run.set_of_prompt == i for i, name in enumerate(run.sets)}
    discovery = {name: int((rows & parts).sum()) for name, rows in sizes.items()}
    holdout = {name: int((rows & ~parts).sum()) for name, rows in sizes.items()}
    return Contrast(
        run=str(run.path),
        layers=results,
        settings=settings,
        discovery=discovery,
        holdout=holdout,
        warnings=_power_warnings(holdout, settings.alpha),
    )


def _layer(run: Run, layer: int, parts: Bools, settings: ContrastSettings) -> LayerContrast:
    features = run.features(layer)
    positions = settings.masking.apply(run.token_pos, features.norms)
    counts = count_fires(run, features, positions.scored)
    refuse_unscored(run, counts)
    discovery, holdout = counts.part(parts), counts.part(~parts)
    found = find(discovery, holdout, settings.alpha)
    rng = np.random.default_rng(settings.seed)
    shuffled = shuffled_confirmed(discovery, holdout, settings.alpha, settings.shuffles, rng)
    means = mean_acts(run, features, positions.scored, counts.features)
    evidence = _Evidence(counts, discovery, holdout, found, means)
    return LayerContrast(
        sets={
            name: _describe(run, layer, i, evidence, settings) for i, name in enumerate(run.sets)
        },
        masked_pos0=positions.masked_pos0,
        masked_sinks=positions.masked_sinks,
        tested=int(found.tested.sum()),
        shuffled_confirmed=shuffled,
    )


@dataclass(frozen=True)
class _Evidence:
    """All that a set's rows are written from."""

    everywhere: Counts
    discovery: Counts
    holdout: Counts
    found: Found
    means: Floats


def _describe(
    run: Run, layer: int, i: int, evidence: _Evidence, settings: ContrastSettings
) -> SetContrast:
    """One set's rows, ordered by the discovery part alone so that the held-out figures of the first are unbiased."""
    everywhere, found = evidence.everywhere, evidence.found
    rows = everywhere.labels == i
    discovery_score = _score(evidence.discovery.rates(), i)
    ranked = np.argsort(-discovery_score, kind="stable")[: settings.n_top]
    shown = ranked[everywhere.rates()[i, ranked] > 0]
    counts, holdout = everywhere.columns(shown), evidence.holdout.columns(shown)
    rates, prompt_rates, held = counts.rates(), counts.prompt_rates(), holdout.rates()
    others, prompt_others, held_others = (
        np.delete(r, i, axis=0).max(axis=0) for r in (rates, prompt_rates, held)
    )
    names = np.delete(np.array(run.sets), i)[np.delete(rates, i, axis=0).argmax(axis=0)]
    rate_ci = _rate_ci(counts, i)
    ci = stats.wilson(prompt_rates[i], float((rows & (counts.n > 0)).sum()))
    held_ci = _score_ci(holdout, i)
    holdout_p = hardest_p(holdout, i)
    return SetContrast(
        tokens=int(everywhere.n[rows].sum()),
        prompts=int(rows.sum()),
        candidates=int(found.candidates[i].sum()),
        confirmed=int(found.confirmed[i].sum()),
        features=[
            FeatureContrast(
                feature=Feature(layer, int(everywhere.features[f])),
                rate=float(rates[i, at]),
                other_rate=float(others[at]),
                other_set=str(names[at]),
                score=float(rates[i, at] - others[at]),
                rate_ci=(float(rate_ci[0][at]), float(rate_ci[1][at])),
                prompt_rate=float(prompt_rates[i, at]),
                prompt_other_rate=float(prompt_others[at]),
                ci=(float(ci[0][at]), float(ci[1][at])),
                p=float(found.p[i, f]),
                q=float(found.q[i, f]),
                discovery_score=float(discovery_score[f]),
                confirmed=bool(found.confirmed[i, f]),
                holdout_rate=float(held[i, at]),
                holdout_other_rate=float(held_others[at]),
                holdout_score=float(held[i, at] - held_others[at]),
                holdout_score_ci=(float(held_ci[0][at]), float(held_ci[1][at])),
                holdout_p=float(holdout_p[at]),
                mean_act=float(evidence.means[i, f]),
            )
            for at, f in enumerate(shown.tolist())
        ],
    )


def _score(rates: Floats, i: int) -> Floats:
    """Set i's rate minus the largest in another set."""
    return np.asarray(rates[i] - np.delete(rates, i, axis=0).max(axis=0))


def _rate_ci(counts: Counts, i: int) -> tuple[Floats, Floats]:
    """Interval of set i's rates, its clustered positions taken for as many independent ones as they are worth."""
    rows = counts.labels == i
    hits, n = counts.hits[rows].toarray(), counts.n[rows]
    return stats.wilson(hits.sum(0) / max(n.sum(), 1), stats.effective_n(hits, n))


def _score_ci(counts: Counts, i: int) -> tuple[Floats, Floats]:
    """Interval of set i's rate minus the largest in another set."""
    rates = counts.rates()
    others = np.delete(np.arange(counts.n_sets), i)
    nearest = others[rates[others].argmax(axis=0)]
    low, high = np.zeros(len(nearest)), np.ones(len(nearest))
    for j in np.unique(nearest).tolist():
        of_j = nearest == j
        low[of_j], high[of_j] = _rate_ci(counts.columns(of_j), j)
    return stats.newcombe(
        rates[i], _rate_ci(counts, i), rates[nearest, np.arange(len(nearest))], (low, high)
    )


def _power_warnings(holdout: dict[str, int], alpha: float) -> list[str]:
    sizes = sorted(holdout.values())
    if stats.least_p(sizes[0], sizes[1], sizes[0]) <= alpha:
        return []
    return [f"no feature can be confirmed: the smallest sets hold out {sizes[0]} and {sizes[1]} prompts; "
            "give 8 prompts a set or more"]  # fmt: skip


def _set_dict(result: SetContrast) -> dict[str, Any]:
    return {
        "tokens": result.tokens,
        "prompts": result.prompts,
        "candidates": result.candidates,
        "confirmed": result.confirmed,
        "features": [feature_dict(feature) for feature in result.features],
    }


def feature_dict(f: FeatureContrast) -> dict[str, Any]:
    """A row as plain values."""
    intervals = {name: list(getattr(f, name)) for name in ("rate_ci", "ci", "holdout_score_ci")}
    return {**vars(f), "feature": str(f.feature), **intervals}


def _masked(layers: Sequence[LayerContrast]) -> dict[str, int]:
    """Position-0 tokens left out once a prompt, sinks once a layer."""
    return {
        "pos0": max((layer.masked_pos0 for layer in layers), default=0),
        "sinks": sum(layer.masked_sinks for layer in layers),
    }
