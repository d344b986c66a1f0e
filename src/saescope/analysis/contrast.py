"""Which features set prompt sets apart, and whether they still do on prompts that had no part in finding them.

The unit is the prompt. Candidates come from the discovery part: a set's prompts against all others, with
Benjamini-Hochberg over the dictionary, and ahead of each other set alone. They are confirmed on the held-out part,
again against each other set, with Benjamini-Hochberg over the candidates. The same search with shuffled labels says
what it finds where nothing is. All of it comes from a stored run; no model is needed to ask again.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import sparse

from saescope.analysis import stats
from saescope.analysis.stats import Bools, Floats, Ints
from saescope.errors import PromptError
from saescope.sources.catalog import Feature
from saescope.sources.prompts import split_prompts
from saescope.store.masking import Masking
from saescope.store.runs import LayerFeatures, Run


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
    """Firings by prompt: `hits` (prompts × features, sparse) of `n` scored positions each, and each prompt's set."""

    features: Ints
    hits: Any
    n: Ints
    labels: Ints
    n_sets: int

    def part(self, rows: Bools) -> "_Counts":
        """Some of the prompts, without those that have no scored position."""
        rows = rows & (self.n > 0)
        return _Counts(self.features, self.hits[rows], self.n[rows], self.labels[rows], self.n_sets)

    def columns(self, which: Bools | Ints) -> "_Counts":
        """Some of the features."""
        return _Counts(self.features[which], self.hits[:, which], self.n, self.labels, self.n_sets)

    @property
    def member(self) -> Floats:
        """Which set (row) each prompt (column) is in, as 0 and 1."""
        return np.asarray(self.labels == np.arange(self.n_sets)[:, None], np.float64)

    def rates(self) -> Floats:
        """Share of scored positions that fire, by set and feature."""
        return np.asarray((self.member @ self.hits) / np.maximum(self.member @ self.n, 1)[:, None])

    def prompt_rates(self) -> Floats:
        """Share of prompts that fire at all, by set and feature."""
        return np.asarray((self.member @ (self.hits > 0)) / np.maximum(self.member.sum(1), 1)[:, None])


@dataclass(frozen=True)
class _Found:
    """What the discovery part proposes (p, q against all other prompts) and the held-out part confirms."""

    p: Floats
    q: Floats
    tested: Bools
    candidates: Bools
    confirmed: Bools


def _layer(run: Run, layer: int, parts: Bools, settings: Settings) -> LayerContrast:
    features = run.features(layer)
    positions = settings.masking.apply(run.token_pos, features.norms)
    counts = _count(run, features, positions.scored)
    _refuse_unscored(run, counts)
    discovery, holdout = counts.part(parts), counts.part(~parts)
    screen = _Screen(discovery)
    found = _find(screen, holdout, settings.alpha)
    rng = np.random.default_rng(settings.seed)
    shuffled = 0
    for _ in range(settings.shuffles):
        halves = [replace(part, labels=rng.permutation(part.labels)) for part in (discovery, holdout)]
        shuffled += int(_find(screen.relabelled(halves[0]), halves[1], settings.alpha).confirmed.sum())
    means = _mean_acts(run, features, positions.scored, counts.features)
    evidence = _Evidence(counts, discovery, holdout, found, means)
    return LayerContrast(
        sets={name: _describe(run, layer, i, evidence, settings) for i, name in enumerate(run.sets)},
        masked_pos0=positions.masked_pos0,
        masked_sinks=positions.masked_sinks,
        tested=int(found.tested.sum()),
        shuffled_confirmed=shuffled,
    )


def _count(run: Run, features: LayerFeatures, scored: Bools) -> _Counts:
    fires = (features.acts > 0) & scored[:, None]
    prompt = np.broadcast_to(run.token_prompt[:, None], fires.shape)[fires]
    present, column = np.unique(features.ids[fires], return_inverse=True)
    shape = (len(run.prompts), len(present))
    hits = sparse.coo_array((np.ones(len(prompt), np.int32), (prompt, column)), shape).tocsr()
    n = np.bincount(run.token_prompt[scored], minlength=len(run.prompts))
    return _Counts(present, hits, n, run.set_of_prompt, len(run.sets))


def _refuse_unscored(run: Run, counts: _Counts) -> None:
    for i, name in enumerate(run.sets):
        if counts.n[counts.labels == i].sum() == 0:
            raise PromptError(
                f"set {name!r} has no scored position (position 0 and sinks do not count): "
                "use prompts of at least two tokens, or --keep-pos0"
            )


class _Screen:
    """The test of every set against all other prompts, for any labelling with the same set sizes.

    Of a set of n prompts, it asks how many are among the n on which the feature fires most, and how probable as many
    are by chance (Fisher's exact test; which prompts those are does not depend on the labels). One test thus serves
    features that are rare and features that fire in every prompt, but more in these.
    """

    def __init__(self, counts: _Counts) -> None:
        self.counts = counts
        self._sizes = np.bincount(counts.labels, minlength=counts.n_sets)
        self._strongest = {n: stats.strongest(counts.hits, counts.n, n) for n in set(self._sizes.tolist()) if n}

    def relabelled(self, counts: _Counts) -> "_Screen":
        """The same prompts with their labels shuffled; what does not depend on labels is not computed again."""
        screen = copy(self)
        screen.counts = counts
        return screen

    def p(self) -> Floats:
        """p by set and feature; 1 for a set without prompts."""
        p = np.ones((self.counts.n_sets, self.counts.hits.shape[1]))
        for i, size in enumerate(self._sizes.tolist()):
            if 0 < size < len(self.counts.n):
                chosen = self._strongest[size]
                inside = chosen[self.counts.labels == i].sum(0)
                p[i] = stats.fisher_greater(inside, size, chosen.sum(0) - inside, len(self.counts.n) - size)
        return p

    def testable(self, alpha: float) -> Bools:
        """Features that fire on enough prompts for some labelling to be significant at `alpha`.

        The choice looks at how many prompts a feature fires on, never in which set, so the false discovery rate over
        the rest holds (Tarone 1990, Gilbert 2005); features that fire on one prompt would only dilute it.
        """
        size, total = int(self._sizes.min(initial=len(self.counts.n))), len(self.counts.n)
        enough = (t for t in range(1, total + 1) if stats.least_p(size, total - size, t) <= alpha)
        return np.asarray((self.counts.hits > 0).sum(axis=0)).reshape(-1) >= next(enough, total + 1)


def _find(screen: _Screen, holdout: _Counts, alpha: float) -> _Found:
    discovery = screen.counts
    p, tested = screen.p(), screen.testable(alpha)
    q, candidates, confirmed = np.ones_like(p), np.zeros(p.shape, bool), np.zeros(p.shape, bool)
    for i in range(discovery.n_sets):
        q[i, tested] = stats.benjamini_hochberg(p[i, tested])
        proposed = np.flatnonzero(q[i] <= alpha)
        proposed = proposed[_hardest_p(discovery.columns(proposed), i) <= alpha]
        candidates[i, proposed] = True
        # The held-out prompts had no part in proposing: their own rate of false discoveries is controlled by itself.
        confirmed[i, proposed] = stats.benjamini_hochberg(_hardest_p(holdout.columns(proposed), i)) <= alpha
    return _Found(p, q, tested, candidates, confirmed)


def _hardest_p(counts: _Counts, i: int) -> Floats:
    """The largest p of set i against each other set alone; 1 where its rate is not above every other one."""
    rates = counts.rates()
    p = np.where(rates[i] > np.delete(rates, i, axis=0).max(axis=0), 0.0, 1.0)
    for j in range(counts.n_sets):
        if i != j:
            rows = (counts.labels == i) | (counts.labels == j)
            p = np.maximum(p, _pair_p(counts.hits[rows], counts.n[rows], counts.labels[rows] == i))
    return p


def _pair_p(hits: Any, n: Ints, first: Bools) -> Floats:
    size = int(first.sum())
    if size in (0, len(n)):
        return np.ones(hits.shape[1])
    chosen = stats.strongest(hits, n, size)
    inside = chosen[first].sum(0)
    return stats.fisher_greater(inside, size, chosen.sum(0) - inside, len(n) - size)


def _mean_acts(run: Run, features: LayerFeatures, scored: Bools, present: Ints) -> Floats:
    """Mean activation by set and feature over the scored positions where it fires."""
    fires = (features.acts > 0) & scored[:, None]
    group = np.broadcast_to(run.set_of_prompt[run.token_prompt][:, None], fires.shape)[fires]
    cell = group * len(present) + np.searchsorted(present, features.ids[fires])
    size = len(run.sets) * len(present)
    sums = np.bincount(cell, weights=features.acts[fires], minlength=size)
    fired = np.maximum(np.bincount(cell, minlength=size), 1)
    return np.asarray(sums / fired).reshape(len(run.sets), len(present))


@dataclass(frozen=True)
class _Evidence:
    """All that a set's rows are written from."""

    everywhere: _Counts
    discovery: _Counts
    holdout: _Counts
    found: _Found
    means: Floats


def _describe(run: Run, layer: int, i: int, evidence: _Evidence, settings: Settings) -> SetContrast:
    """One set's rows, ordered by the discovery part alone so that the held-out figures of the first are unbiased."""
    everywhere, found = evidence.everywhere, evidence.found
    rows = everywhere.labels == i
    discovery_score = _score(evidence.discovery.rates(), i)
    ranked = np.argsort(-discovery_score, kind="stable")[: settings.n_top]
    shown = ranked[everywhere.rates()[i, ranked] > 0]
    counts, holdout = everywhere.columns(shown), evidence.holdout.columns(shown)
    rates, prompt_rates, held = counts.rates(), counts.prompt_rates(), holdout.rates()
    others, prompt_others, held_others = (np.delete(r, i, axis=0).max(axis=0) for r in (rates, prompt_rates, held))
    names = np.delete(np.array(run.sets), i)[np.delete(rates, i, axis=0).argmax(axis=0)]
    rate_ci = stats.wilson(rates[i], stats.effective_n(counts.hits[rows].toarray(), counts.n[rows]))
    ci = stats.wilson(prompt_rates[i], float((rows & (counts.n > 0)).sum()))
    holdout_p = _hardest_p(holdout, i)
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
                holdout_p=float(holdout_p[at]),
                mean_act=float(evidence.means[i, f]),
            )
            for at, f in enumerate(shown.tolist())
        ],
    )


def _score(rates: Floats, i: int) -> Floats:
    """Set i's rate minus the largest in another set."""
    return np.asarray(rates[i] - np.delete(rates, i, axis=0).max(axis=0))


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
        "features": [{**vars(f), "feature": str(f.feature), "rate_ci": list(f.rate_ci), "ci": list(f.ci)}
                     for f in result.features],
    }  # fmt: skip


def _masked(layers: Sequence[LayerContrast]) -> dict[str, int]:
    """Position-0 tokens left out once a prompt, sinks once a layer."""
    return {
        "pos0": max((layer.masked_pos0 for layer in layers), default=0),
        "sinks": sum(layer.masked_sinks for layer in layers),
    }
