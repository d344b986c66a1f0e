"""`overlap` grows with the sets, not with their pairs: each set keeps those it shares most with."""

from pathlib import Path

from saescope.analysis.measures import MAX_OVERLAPS, measure_sets
from test_detect_many_sets import LENGTH, sets_with_a_feature_each


def test_the_sets_that_share_most_are_kept(tmp_path: Path) -> None:
    n_sets = MAX_OVERLAPS + 30
    run = sets_with_a_feature_each(tmp_path / "run", n_sets, n_prompts=2)
    stored = run.features(1)
    scored = run.token_pos > 0
    fired: dict[str, set[int]] = {name: set() for name in run.sets}
    for token in range(LENGTH - 1, len(scored), LENGTH):
        fired[run.prompts[token // LENGTH].set] |= set(stored.ids[stored.row(token)].tolist())
    measures = measure_sets(run, stored, scored)
    for name, ids in fired.items():
        every = {o: len(ids & fired[o]) / max(1, len(ids)) for o in run.sets if o != name}
        kept = measures[name].overlap
        assert len(kept) == MAX_OVERLAPS
        assert kept == {other: every[other] for other in run.sets if other in kept}
        left_out = [share for other, share in every.items() if other not in kept]
        assert min(kept.values()) >= max(left_out)
    assert sum(len(one.overlap) for one in measures.values()) == n_sets * MAX_OVERLAPS
