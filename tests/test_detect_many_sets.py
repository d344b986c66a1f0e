"""Detection over many sets: shared counts give what each set gives alone, at a cost per set."""

from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from saescope.analysis import classify
from saescope.analysis.classify import Scores, score
from saescope.analysis.detect import detect
from saescope.analysis.detection import DetectSettings
from saescope.analysis.measures import measure_sets
from saescope.sources.splits import split_prompts
from saescope.store.runs import Run
from stored import write_run

LENGTH = 4
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def exact_f1_interval(
    detected: Bools, positive: Bools, pairs: Ints, tail: float
) -> tuple[float, float]:
    """Percentiles of F1 over every way of drawing as many pairs as there are."""
    names = sorted(set(pairs.tolist()))
    f1 = []
    for drawn in product(names, repeat=len(names)):
        rows = np.concatenate([np.flatnonzero(pairs == name) for name in drawn])
        hits = int((detected & positive)[rows].sum())
        both = int(detected[rows].sum() + positive[rows].sum())
        if both:
            f1.append(2 * hits / both)
    low, high = np.quantile(f1, [tail, 1 - tail])
    return float(low), float(high)


@pytest.mark.parametrize(
    ("detected", "positive", "pairs"),
    [
        ([1, 1, 0, 1, 0], [1, 1, 1, 0, 0], [0, 1, 2, 3, 4]),
        ([1, 0, 1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 1, 0, 1, 0], [3, 3, 7, 7, 0, 0, 9, 9]),
        ([1, 1, 1, 0, 0, 1, 1, 0, 0], [1, 1, 0, 1, 1, 0, 1, 0, 0], [0, 0, 0, 1, 2, 2, 3, 4, 4]),
    ],
)
def test_intervals_are_those_of_drawing_pairs(
    detected: list[int], positive: list[int], pairs: list[int]
) -> None:
    arguments = (np.array(detected, bool), np.array(positive, bool), np.array(pairs))
    # The ends of 10,000 draws lie between the exact percentiles of nearby tails.
    widest, narrowest = (exact_f1_interval(*arguments, tail) for tail in (0.02, 0.03))
    for seed in range(5):
        interval = score(*arguments, seed).f1_ci
        assert interval is not None
        assert widest[0] <= interval[0] <= narrowest[0]
        assert narrowest[1] <= interval[1] <= widest[1]


def test_intervals_depend_on_the_seed_and_not_on_the_order() -> None:
    rng = np.random.default_rng(0)
    detected, positive = rng.random((2, 90)) < 0.5
    pairs = np.arange(90) // 2
    order = rng.permutation(90)
    interval = score(detected, positive, pairs).f1_ci
    assert score(detected[order], positive[order], 44 - pairs[order]).f1_ci == interval
    assert score(detected, positive, pairs, seed=1).f1_ci != interval
    assert score(detected, np.zeros(90, bool), pairs).f1_ci is None


def sets_with_a_feature_each(out: Path, n_sets: int, n_prompts: int = 6) -> Run:
    """Set i fires feature i on all its prompts; feature `n_sets` + j fires at random."""
    rng = np.random.default_rng(n_sets)
    set_of_prompt = np.repeat(np.arange(n_sets), n_prompts)
    own = set_of_prompt[:, None] == np.arange(n_sets)
    fires = np.hstack([own, rng.random((len(own), 5)) < 0.3]).repeat(LENGTH, axis=0)
    fires &= rng.random(fires.shape) < 0.8
    resids = rng.normal(size=(len(own), 3)).astype(np.float32)
    lengths = {f"s{i}": [LENGTH] * n_prompts for i in range(n_sets)}
    return write_run(out, lengths, {1: fires}, resids=resids)


def test_transfer_gives_each_set_what_it_gives_alone(tmp_path: Path) -> None:
    run = sets_with_a_feature_each(tmp_path / "run", 7)
    every = detect(run, "s2", DetectSettings(shuffles=0, seed=3)).classifier
    assert list(every.transfer) == [name for name in run.sets if name != "s2"]
    columns = [feature.id for feature in every.features]
    for name, scores in every.transfer.items():
        others = [other for other in run.sets if other not in ("s2", name)]
        settings = DetectSettings(shuffles=0, seed=3)
        alone = detect(run, "s2", settings, transfer={name: others}).classifier
        assert alone.transfer == {name: scores}
        assert scores.rule == _score_of_held_out(run, columns, name, others)


def _score_of_held_out(run: Run, columns: list[int], name: str, others: list[str]) -> Scores:
    """Scores of 'any of these features fires on a scored position', prompt by prompt."""
    stored = run.features(1)
    detected, positive = [], []
    for i, (prompt, part) in enumerate(
        zip(run.prompts, split_prompts(run.prompts, seed=3), strict=True)
    ):
        if part == "holdout" and prompt.set in [name, *others]:
            tokens = range(i * LENGTH + 1, (i + 1) * LENGTH)
            ids = {feature for token in tokens for feature in stored.ids[stored.row(token)]}
            detected.append(bool(ids & set(columns)))
            positive.append(prompt.set == name)
    return score(np.array(detected), np.array(positive), np.arange(len(detected)), 3)


def test_measures_equal_those_of_sets_of_features(tmp_path: Path) -> None:
    run = sets_with_a_feature_each(tmp_path / "run", 6)
    stored = run.features(1)
    scored = np.random.default_rng(0).random(len(run.token_prompt)) < 0.9
    last = [i for i in range(LENGTH - 1, len(scored), LENGTH) if scored[i]]
    fired: dict[str, list[int]] = {name: [] for name in run.sets}
    for token in last:
        name = run.prompts[token // LENGTH].set
        fired[name] += stored.ids[stored.row(token)].tolist()
    measures = measure_sets(run, stored, scored)
    assert list(measures) == list(run.sets)
    for name, ids in fired.items():
        n = max(1, len(set(ids)))
        assert measures[name].features == len(set(ids))
        assert measures[name].redundancy == len(ids) / n
        overlap = {o: len(set(ids) & set(fired[o])) / n for o in run.sets if o != name}
        assert measures[name].overlap == overlap


def test_no_feature_at_the_last_positions(tmp_path: Path) -> None:
    run = sets_with_a_feature_each(tmp_path / "run", 3)
    measures = measure_sets(run, run.features(1), np.zeros(len(run.token_prompt), bool))
    assert [vars(one) for one in measures.values()] == [
        {"features": 0, "redundancy": 0.0, "overlap": {o: 0.0 for o in run.sets if o != name}}
        for name in run.sets
    ]


def test_an_interval_costs_the_same_with_more_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap = classify._bootstrap_f1
    drawn: list[int] = []

    def counted(
        kinds: tuple[int, ...], pairs_of_kind: tuple[int, ...], width: int, seed: int
    ) -> tuple[float, float]:
        drawn.append(len(kinds))
        return bootstrap(kinds, pairs_of_kind, width, seed)

    monkeypatch.setattr(classify, "_bootstrap_f1", counted)
    for n_sets in (4, 30):
        drawn.clear()
        run = sets_with_a_feature_each(tmp_path / str(n_sets), n_sets)
        detect(run, "s0", DetectSettings(shuffles=0))
        # Four detectors on the target and on each other set, and the rule on discovery prompts.
        assert len(drawn) == 4 * n_sets + 1
        assert max(drawn) <= 3  # a hit, one of the two, neither: however many the prompts
