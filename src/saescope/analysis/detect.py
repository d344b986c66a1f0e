"""Features that detect a behaviour: by thresholds on prompts, as groups, and as a classifier tried on other prompts.

Everything is chosen on the discovery part and told of the held-out part. How many features would pass the thresholds
by chance is measured, not assumed: the same rule with labels shuffled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from saescope.analysis import stats
from saescope.analysis.classify import Scores, baselines, fit_or_rule, score
from saescope.analysis.counts import Counts, count_fires, refuse_unscored
from saescope.analysis.detection import (
    Classifier,
    DetectedFeature,
    Detection,
    DetectSettings,
    PromptFirings,
)
from saescope.analysis.measures import measure_sets
from saescope.analysis.search import Found, find
from saescope.analysis.sets import check_sets
from saescope.analysis.stats import Bools, Floats, Ints
from saescope.sources.catalog import Feature
from saescope.sources.prompts import split_key, split_prompts
from saescope.store.masking import Positions
from saescope.store.runs import Run
from saescope.store.tables import LayerFeatures

GROUP_JACCARD = 0.5


@dataclass(frozen=True)
class _Question:
    """Which sets are asked about, and which prompts are for what."""

    run: Run
    target: str
    against: list[str]
    discovery: Bools
    settings: DetectSettings

    @property
    def positive(self) -> Bools:
        return np.array([p.set == self.target for p in self.run.prompts])

    @property
    def negative(self) -> Bools:
        return np.array([p.set in self.against for p in self.run.prompts])

    @property
    def keys(self) -> list[str]:
        return [split_key(prompt) for prompt in self.run.prompts]


@dataclass(frozen=True)
class _Layer:
    """One layer's firings, and what the search found among the sets asked about (columns as in `counts`)."""

    number: int
    stored: LayerFeatures
    positions: Positions
    counts: Counts
    asked: Counts
    found: Found
    passing: Ints
    best_gap: float

    @property
    def fires(self) -> Bools:
        """Whether each feature (column) fires on any scored position of each prompt (row)."""
        return np.asarray((self.counts.hits > 0).toarray())


def detect(
    run: Run,
    target: str,
    settings: DetectSettings | None = None,
    *,
    against: Sequence[str] | None = None,
    transfer: Mapping[str, Sequence[str]] | None = None,
    layers: Sequence[int] | None = None,
) -> Detection:
    """Features that fire on `target` prompts and not on those of the sets `against` (all others when left out).

    The classifier is of the layer with the largest gap between shares of prompts. `transfer` names positive sets and
    the negative ones each is tried with; when left out, sets named alike (`x_en` against `y_en` finds `x_ja` and
    `y_ja`), or else every other set against the remaining ones. Raises PromptError for sets that are not there.
    """
    settings = settings or DetectSettings()
    settings.check()
    others = check_sets(run.sets, target, against, transfer)
    split = split_prompts(run.prompts, seed=settings.seed)
    question = _Question(
        run, target, others, np.array([part == "discovery" for part in split]), settings
    )
    found = [_layer(question, n) for n in layers or run.layers]
    best = max(found, key=lambda layer: layer.best_gap)
    features = [f for layer in found for f in _describe(question, layer)]
    chance = [_by_chance(question, layer) for layer in found]
    counts = np.sum(chance, axis=0) if settings.shuffles else np.zeros(1)
    return Detection(
        run=str(run.path),
        target=target,
        against=others,
        settings=settings,
        features=sorted(features, key=lambda f: (f.prompt_other_rate - f.prompt_rate, f.feature)),
        by_chance=float(np.mean(counts)),
        by_chance_95=float(np.quantile(counts, 0.95)),
        firings=_firings(question, found, split),
        classifier=_classifier(
            question, best, transfer if transfer is not None else _alike(run, target, others)
        ),
        sets=measure_sets(run, best.stored, best.positions.scored),
        masked={
            layer.number: (layer.positions.masked_pos0, layer.positions.masked_sinks)
            for layer in found
        },
        warnings=_warnings(question),
    )


def _layer(question: _Question, number: int) -> _Layer:
    run, settings = question.run, question.settings
    stored = run.features(number)
    positions = settings.masking.apply(run.token_pos, stored.norms)
    counts = count_fires(run, stored, positions.scored)
    refuse_unscored(run, counts)
    asked = _asked(question, counts)
    found = find(asked.part(question.discovery), asked.part(~question.discovery), settings.alpha)
    rates = asked.part(question.discovery).prompt_rates()
    gap = rates[0] - rates[1:].max(axis=0)
    return _Layer(
        number=number,
        stored=stored,
        positions=positions,
        counts=counts,
        asked=asked,
        found=found,
        passing=np.flatnonzero(_passes(rates, settings)),
        best_gap=float(gap.max(initial=-1.0)),
    )


def _asked(question: _Question, counts: Counts) -> Counts:
    """The same firings with the target as set 0 and the sets against it after; other prompts count nothing."""
    names = [question.target, *question.against]
    number = {question.run.sets.index(name): i for i, name in enumerate(names)}
    labels = np.array([number.get(label, -1) for label in counts.labels.tolist()])
    return replace(counts, n=np.where(labels >= 0, counts.n, 0), labels=labels, n_sets=len(names))


def _passes(prompt_rates: Floats, settings: DetectSettings) -> Bools:
    return np.asarray(
        (prompt_rates[0] >= settings.min_rate)
        & (prompt_rates[1:].max(axis=0) <= settings.max_other)
    )


def _by_chance(question: _Question, layer: _Layer) -> Ints:
    """How many features pass with labels shuffled among the discovery prompts, once a shuffle."""
    part = layer.asked.part(question.discovery)
    enough = part.prompts_fired() >= question.settings.min_rate * float((part.labels == 0).sum())
    part = part.columns(enough)
    rng = np.random.default_rng([question.settings.seed, layer.number])
    return np.array(
        [
            int(
                _passes(
                    replace(part, labels=rng.permutation(part.labels)).prompt_rates(),
                    question.settings,
                ).sum()
            )
            for _ in range(question.settings.shuffles)
        ],
        dtype=np.int64,
    )


def _describe(question: _Question, layer: _Layer) -> list[DetectedFeature]:
    if not len(layer.passing):
        return []
    shown = layer.asked.columns(layer.passing)
    rates = shown.part(question.discovery).prompt_rates()
    holdout = shown.part(~question.discovery)
    held = holdout.prompt_rates()
    n_held = int((holdout.labels == 0).sum())
    ci = stats.wilson(held[0], n_held)
    nu = _monolinguality(question, layer, shown.features)
    groups = _groups(layer, shown.features)
    return [
        DetectedFeature(
            feature=Feature(layer.number, int(shown.features[at])),
            prompt_rate=float(rates[0, at]),
            prompt_other_rate=float(rates[1:, at].max()),
            other_set=question.against[int(rates[1:, at].argmax())],
            holdout_rate=float(held[0, at]),
            holdout_ci=(float(ci[0][at]), float(ci[1][at])),
            holdout_other_rate=float(held[1:, at].max()),
            holdout_passes=bool(_passes(held, question.settings)[at]),
            p=float(layer.found.p[0, column]),
            q=float(layer.found.q[0, column]),
            confirmed=bool(layer.found.confirmed[0, column]),
            monolinguality=float(nu[at]),
            group=int(groups[at]),
        )
        for at, column in enumerate(layer.passing.tolist())
    ]


def _monolinguality(question: _Question, layer: _Layer, ids: Ints) -> Floats:
    """Mean activation over scored positions of the target less that of the others, silent positions counted as 0."""
    if not len(ids):
        return np.zeros(0)
    run, scored = question.run, layer.positions.scored
    means = []
    for prompts in (question.positive, question.negative):
        rows = scored & prompts[run.token_prompt]
        counted = rows[layer.stored.token]
        acts, of = layer.stored.acts[counted].astype(np.float64), layer.stored.ids[counted]
        position = np.searchsorted(ids, of)
        known = ids[np.minimum(position, len(ids) - 1)] == of
        sums = np.bincount(position[known], weights=acts[known], minlength=len(ids))[: len(ids)]
        means.append(sums / max(1, int(rows.sum())))
    return np.asarray(means[0] - means[1])


def _groups(layer: _Layer, ids: Ints) -> Ints:
    """Numbers of groups whose features fire on the same tokens: average linkage, half of their tokens shared."""
    if len(ids) < 2:
        return np.zeros(len(ids), np.int64)
    from scipy.cluster.hierarchy import fcluster, linkage

    rows = np.flatnonzero(layer.positions.scored)
    stored = layer.stored
    fires = np.stack([stored.fires(f)[rows] for f in ids.tolist()])
    both = fires.astype(np.float32) @ fires.T.astype(np.float32)
    alone = fires.sum(axis=1)
    distance = 1 - both / np.maximum(alone[:, None] + alone[None, :] - both, 1)
    upper = distance[np.triu_indices(len(ids), 1)]
    return np.asarray(fcluster(linkage(upper, "average"), GROUP_JACCARD, "distance"), np.int64) - 1


def _firings(
    question: _Question, found: Sequence[_Layer], split: Sequence[str]
) -> list[PromptFirings]:
    fires: list[list[Feature]] = [[] for _ in question.run.prompts]
    for layer in found:
        part = layer.counts.columns(layer.passing)
        for prompt, column in zip(*np.nonzero((part.hits > 0).toarray()), strict=True):
            fires[prompt].append(Feature(layer.number, int(part.features[column])))
    return [
        PromptFirings(prompt.id, prompt.set, part, fires[n])
        for n, (prompt, part) in enumerate(zip(question.run.prompts, split, strict=True))
    ]


def _alike(run: Run, target: str, against: Sequence[str]) -> dict[str, list[str]]:
    """Sets named like the target and the one against it: `x_en`, `y_en` finds `x_ja` with `y_ja`; else every other."""
    if len(against) == 1:
        shared = next(
            (
                n
                for n in range(min(len(target), len(against[0])))
                if target[-n - 1] != against[0][-n - 1]
            ),
            0,
        )
        x, y = target[: len(target) - shared], against[0][: len(against[0]) - shared]
        pairs = {
            name: [y + name[len(x) :]] for name in run.sets if name.startswith(x) and name != target
        }
        pairs = {
            name: negatives
            for name, negatives in pairs.items()
            if negatives[0] in run.sets and shared
        }
        if pairs:
            return pairs
    rest = [name for name in run.sets if name != target]
    return {
        name: [n for n in against if n != name] for name in rest if any(n != name for n in against)
    }


def _classifier(
    question: _Question, layer: _Layer, transfer: Mapping[str, Sequence[str]]
) -> Classifier:
    run, seed = question.run, question.settings.seed
    usable = layer.counts.n > 0
    asked = (question.positive | question.negative) & usable
    train, test = asked & question.discovery, asked & ~question.discovery
    fires = layer.fires
    features, most = layer.counts.features, question.settings.max_k
    strength = _monolinguality(question, layer, features)
    rule = fit_or_rule(
        fires[train], question.positive[train], features, layer.number, most, strength
    )
    plain = baselines(run.resids(layer.number).mean, _words(run), question.positive, train)
    detectors = {"rule": rule(fires), **{name: detected for name, (detected, _) in plain.items()}}

    def judge(name: str, rows: Bools, positive: Bools) -> Scores:
        keys = [key for key, chosen in zip(question.keys, rows, strict=True) if chosen]
        return score(detectors[name][rows], positive[rows], keys, seed)

    transferred = {}
    held = usable & ~question.discovery
    for name, negatives in transfer.items():
        positive = np.array([p.set == name for p in run.prompts])
        rows = held & (positive | np.array([p.set in negatives for p in run.prompts]))
        transferred[name] = (
            judge("rule", rows, positive),
            {b: judge(b, rows, positive) for b in plain},
        )
    return Classifier(
        layer=layer.number,
        features=rule.features,
        discovery=judge("rule", train, question.positive),
        holdout=judge("rule", test, question.positive),
        baselines={name: judge(name, test, question.positive) for name in plain},
        transfer=transferred,
    )


def _words(run: Run) -> Any:
    """Which tokens occur in each prompt, sparse."""
    _, column = np.unique(run.token_id, return_inverse=True)
    shape = (len(run.prompts), int(column.max()) + 1)
    counts = sparse.coo_array((np.ones(len(column)), (run.token_prompt, column)), shape).tocsr()
    return (counts > 0).astype(np.float64)


def _warnings(question: _Question) -> list[str]:
    sizes = [
        int((rows & part).sum())
        for rows in (question.positive, question.negative)
        for part in (question.discovery, ~question.discovery)
    ]
    if min(sizes) >= 10:
        return []
    return [
        f"few prompts: {question.target} has {sizes[0]} for discovery and {sizes[1]} held out, the others {sizes[2]} "
        f"and {sizes[3]}; with fewer than 10 in each, thresholds pass by chance and intervals are wide"
    ]
