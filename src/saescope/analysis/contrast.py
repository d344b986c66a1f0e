"""Which features set prompt sets apart, and whether they still do on prompts that had no part in finding them.

Candidates come from the discovery part: a test on prompts, Benjamini-Hochberg over the dictionary. They are confirmed
on the held-out part by the same test over the candidates alone. The same procedure on shuffled labels says what it
finds where nothing is. All of it comes from a stored run; no model is needed to ask again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from saescope.analysis import stats
from saescope.analysis.stats import Floats, Ints
from saescope.errors import PromptError
from saescope.sources.catalog import Feature
from saescope.sources.prompts import split_prompts
from saescope.store.masking import Masking
from saescope.store.runs import LayerFeatures, Run

Bools = npt.NDArray[np.bool_]


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


@dataclass(frozen=True)
class Contrast:
    """The answer to `contrast`, for every layer of a run."""

    run: str
    layers: dict[int, LayerContrast]
    settings: "Settings"
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
                         "sink_ratio": self.settings.masking.sink_ratio},
            "warnings": self.warnings,
            "run": self.run,
        }  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How to contrast: false discovery rate, rows shown a set, label shuffles, seed, and which positions count."""

    alpha: float = 0.05
    n_top: int = 10
    shuffles: int = 20
    seed: int = 0
    masking: Masking = field(default_factory=Masking)

    def check(self) -> None:
        """Raises PromptError for a value no search can use."""
        if not 0 < self.alpha < 1:
            raise PromptError(f"--alpha is {self.alpha}: a false discovery rate lies between 0 and 1")
        if self.n_top < 1:
            raise PromptError(f"--n-top is {self.n_top}: it must be at least 1")
        if self.shuffles < 0:
            raise PromptError(f"--shuffles is {self.shuffles}: it must be 0 or more")


def contrast(run: Run, settings: Settings | None = None, layers: Sequence[int] | None = None) -> Contrast:
    """Features that set each prompt set of the run apart from every other one.

    Raises PromptError for fewer than two sets or a set without a scored position.
    """
    settings = settings or Settings()
    settings.check()
    if len(run.sets) < 2:
        raise PromptError(f"contrast needs at least two sets, {run.path} has one ({run.sets[0]}): add a set to compare")
    parts = np.array([part == "discovery" for part in split_prompts(run.prompts, seed=settings.seed)])
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


@dataclass(frozen=True)
class _Counts:
    """Firings of one layer by prompt: `hits` (prompts × features that fire at all), `n` scored positions a prompt."""

    features: Ints
    hits: Any
    n: Ints

    def part(self, rows: Bools) -> "_Counts":
        return _Counts(self.features, self.hits[rows], self.n[rows])


@dataclass(frozen=True)
class _Evidence:
    """By set and feature: position rates, prompt counts, and p against the hardest other set."""

    rate: Floats
    other_rate: Floats
    other: Ints
    prompts: Ints
    any_hits: Ints
    p: Floats

    @property
    def score(self) -> Floats:
        return self.rate - self.other_rate


def _layer(run: Run, layer: int, parts: Bools, settings: Settings) -> LayerContrast:
    features = run.features(layer)
    positions = settings.masking.apply(run.token_pos, features.norms)
    counts = _count(run, features, positions.scored)
    labels = run.set_of_prompt
    _refuse_unscored(run, counts)
    found = _find(counts, labels, parts, len(run.sets), settings.alpha)
    rng = np.random.default_rng(settings.seed)
    shuffled = [
        _find(counts, rng.permutation(labels), parts, len(run.sets), settings.alpha).confirmed.sum()
        for _ in range(settings.shuffles)
    ]
    means = _mean_acts(run, features, positions.scored, counts.features)
    return LayerContrast(
        sets={name: _describe(run, layer, i, counts, found, means, settings) for i, name in enumerate(run.sets)},
        masked_pos0=positions.masked_pos0,
        masked_sinks=positions.masked_sinks,
        tested=int(found.tested.sum()),
        shuffled_confirmed=int(sum(shuffled)),
    )


def _count(run: Run, features: LayerFeatures, scored: Bools) -> _Counts:
    fires = (features.acts > 0) & scored[:, None]
    prompt = np.broadcast_to(run.token_prompt[:, None], fires.shape)[fires]
    present, column = np.unique(features.ids[fires], return_inverse=True)
    shape = (len(run.prompts), len(present))
    hits = sparse.coo_array((np.ones(len(prompt), np.int32), (prompt, column)), shape).tocsr()
    return _Counts(present, hits, np.bincount(run.token_prompt[scored], minlength=len(run.prompts)))


def _refuse_unscored(run: Run, counts: _Counts) -> None:
    for i, name in enumerate(run.sets):
        if counts.n[run.set_of_prompt == i].sum() == 0:
            raise PromptError(
                f"set {name!r} has no scored position (position 0 and sinks do not count): "
                "use prompts of at least two tokens, or --keep-pos0"
            )


@dataclass(frozen=True)
class _Found:
    """Discovery and confirmation: evidence of all, discovery and held-out prompts, and what follows from it."""

    everywhere: _Evidence
    discovery: _Evidence
    holdout: _Evidence
    tested: Bools
    q: Floats
    candidates: Bools
    confirmed: Bools


def _find(counts: _Counts, labels: Ints, parts: Bools, n_sets: int, alpha: float) -> _Found:
    discovery = _evidence(counts.part(parts), labels[parts], n_sets)
    holdout = _evidence(counts.part(~parts), labels[~parts], n_sets)
    tested = _testable(counts.part(parts), discovery, alpha)
    q = np.ones_like(discovery.p)
    confirmed = np.zeros(q.shape, bool)
    for i in range(n_sets):
        q[i, tested] = stats.benjamini_hochberg(discovery.p[i, tested])
    candidates = (q <= alpha) & (discovery.score > 0)
    for i in range(n_sets):
        held = stats.benjamini_hochberg(holdout.p[i, candidates[i]])
        confirmed[i, candidates[i]] = (held <= alpha) & (holdout.score[i, candidates[i]] > 0)
    return _Found(_evidence(counts, labels, n_sets), discovery, holdout, tested, q, candidates, confirmed)


def _testable(counts: _Counts, evidence: _Evidence, alpha: float) -> Bools:
    """Features that fire on enough prompts for any split of the labels to be significant.

    The choice looks at how many prompts a feature fires on, never in which set, so the false discovery rate over the
    rest holds (Tarone 1990, Gilbert 2005); rare features would only dilute it.
    """
    sizes = evidence.prompts
    if len(sizes) == 0 or sizes.min() == 0:
        return np.zeros(counts.hits.shape[1], bool)
    n, other = int(sizes.min()), int(np.sort(sizes)[1])
    needed = next(
        (t for t in range(1, n + 1) if 2 * stats.fisher_greater(np.array([t]), n, np.array([0]), other)[0] <= alpha),
        n + 1,
    )
    return np.asarray((counts.hits > 0).sum(axis=0)).reshape(-1) >= needed


def _evidence(counts: _Counts, labels: Ints, n_sets: int) -> _Evidence:
    counted = counts.n > 0
    member = sparse.csr_array((labels == np.arange(n_sets)[:, None]) & counted)
    prompts = np.asarray(member.sum(axis=1)).reshape(-1).astype(np.int64)
    tokens = np.maximum(member @ counts.n, 1)
    fires, most = _firing_prompts(counts)
    rate = (member.astype(np.int64) @ counts.hits).toarray() / tokens[:, None]
    any_hits, most_hits = ((member.astype(np.int64) @ x).toarray() for x in (fires, most))
    p = np.zeros_like(rate)
    for i in range(n_sets):
        for j in range(n_sets):
            if i != j:
                p[i] = np.maximum(p[i], _pair_p(any_hits, most_hits, prompts, i, j))
    other, other_rate = _largest_other(rate)
    return _Evidence(rate, other_rate, other, prompts, any_hits, p)


def _firing_prompts(counts: _Counts) -> tuple[Any, Any]:
    """Where a feature fires in a prompt at all, and where at half of its scored positions or more."""
    rows = np.repeat(np.arange(counts.hits.shape[0]), np.diff(counts.hits.indptr))
    fires, most = counts.hits.astype(np.int64), counts.hits.astype(np.int64)
    fires.data[:] = 1
    most.data[:] = 2 * counts.hits.data >= counts.n[rows]
    return fires, most


def _pair_p(any_hits: Ints, most_hits: Ints, prompts: Ints, i: int, j: int) -> Floats:
    """Twice the smaller of two exact tests: prompts that fire at all, and prompts that fire at half of their positions.

    The first sees rare features in short prompts, the second general ones in long prompts.
    """
    tests = [stats.fisher_greater(hits[i], int(prompts[i]), hits[j], int(prompts[j])) for hits in (any_hits, most_hits)]
    return np.minimum(1.0, 2 * np.minimum(*tests))


def _largest_other(rate: Floats) -> tuple[Ints, Floats]:
    """For every set and feature, the other set with the largest rate, and that rate."""
    order = np.argsort(rate, axis=0, kind="stable")
    first, second = order[-1], order[-2]
    other = np.where(np.arange(len(rate))[:, None] == first, second, first)
    return other, np.take_along_axis(rate, other, axis=0)


def _mean_acts(run: Run, features: LayerFeatures, scored: Bools, present: Ints) -> Floats:
    """Mean activation by set and feature over the scored positions where it fires."""
    fires = (features.acts > 0) & scored[:, None]
    group = np.broadcast_to(run.set_of_prompt[run.token_prompt][:, None], fires.shape)[fires]
    cell = group * len(present) + np.searchsorted(present, features.ids[fires])
    size = len(run.sets) * len(present)
    sums = np.bincount(cell, weights=features.acts[fires], minlength=size)
    means: Floats = sums / np.maximum(np.bincount(cell, minlength=size), 1)
    return means.reshape(len(run.sets), -1)


def _describe(
    run: Run, layer: int, i: int, counts: _Counts, found: _Found, means: Floats, settings: Settings
) -> SetContrast:
    every, rows = found.everywhere, run.set_of_prompt == i
    ranked = np.lexsort((-every.score[i], -found.discovery.score[i]))[: settings.n_top]
    shown = ranked[every.rate[i, ranked] > 0]
    worth = stats.effective_n(counts.hits[rows][:, shown].toarray(), counts.n[rows])
    rate_low, rate_high = stats.wilson(every.rate[i, shown], worth)
    prompt_rates = every.any_hits / np.maximum(every.prompts, 1)[:, None]
    low, high = stats.wilson(prompt_rates[i, shown], every.prompts[i])
    others = np.delete(prompt_rates, i, axis=0).max(axis=0)
    features = [
        FeatureContrast(
            feature=Feature(layer, int(counts.features[f])),
            rate=float(every.rate[i, f]),
            other_rate=float(every.other_rate[i, f]),
            other_set=run.sets[every.other[i, f]],
            score=float(every.score[i, f]),
            rate_ci=(float(rate_low[at]), float(rate_high[at])),
            prompt_rate=float(prompt_rates[i, f]),
            prompt_other_rate=float(others[f]),
            ci=(float(low[at]), float(high[at])),
            p=float(found.discovery.p[i, f]),
            q=float(found.q[i, f]),
            discovery_score=float(found.discovery.score[i, f]),
            confirmed=bool(found.confirmed[i, f]),
            holdout_rate=float(found.holdout.rate[i, f]),
            holdout_other_rate=float(found.holdout.other_rate[i, f]),
            holdout_score=float(found.holdout.score[i, f]),
            holdout_p=float(found.holdout.p[i, f]),
            mean_act=float(means[i, f]),
        )
        for at, f in enumerate(shown.tolist())
    ]
    return SetContrast(
        tokens=int(counts.n[rows].sum()),
        prompts=int(rows.sum()),
        candidates=int(found.candidates[i].sum()),
        confirmed=int(found.confirmed[i].sum()),
        features=features,
    )


def _power_warnings(holdout: dict[str, int], alpha: float) -> list[str]:
    sizes = sorted(holdout.values())
    if 2 * stats.least_p(sizes[0], sizes[1]) <= alpha:
        return []
    return [f"no feature can be confirmed: the smallest sets hold out {sizes[0]} and {sizes[1]} prompts; "
            "10 prompts a set are the least that can"]  # fmt: skip


def _set_dict(result: SetContrast) -> dict[str, Any]:
    return {
        "tokens": result.tokens,
        "prompts": result.prompts,
        "candidates": result.candidates,
        "confirmed": result.confirmed,
        "features": [{**vars(f), "feature": str(f.feature), "rate_ci": list(f.rate_ci), "ci": list(f.ci)}
                     for f in result.features],
    }  # fmt: skip


def _masked(layers: Sequence[LayerContrast]) -> dict[str, int]:
    """Position-0 tokens left out once a prompt, sinks once a layer."""
    return {
        "pos0": max((layer.masked_pos0 for layer in layers), default=0),
        "sinks": sum(layer.masked_sinks for layer in layers),
    }
