"""A run is read back as it was written, and refused when it is not one."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saescope.errors import RunError
from saescope.store.runs import Run
from saescope.store.tables import LayerFeatures
from saescope.store.verification import verify
from stored import padded, write_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    fires = np.arange(15).reshape(5, 3) % 4 == 0
    return write_run(tmp_path / "run", {"a": [2], "b": [2, 1]}, {3: fires, 7: ~fires}, paired=True)


def test_stored_is_read_back(run: Run) -> None:
    reopened = Run.open(run.path)
    assert (reopened.layers, reopened.sets, reopened.set_of_prompt.tolist()) == (
        (3, 7),
        ("a", "b"),
        [0, 1, 1],
    )
    assert reopened.token_prompt.tolist() == [0, 0, 1, 1, 2]
    assert reopened.token_pos.tolist() == [0, 1, 0, 1, 0]
    assert [prompt.pair for prompt in reopened.prompts] == ["0", "0", "1"]
    features = reopened.features(3)
    fires = np.zeros((5, 3), bool)
    fires[features.token, features.ids] = True
    assert np.array_equal(fires, np.arange(15).reshape(5, 3) % 4 == 0)
    assert features.ids.dtype == np.uint16


def test_any_parquet_reader_can_open_it(run: Run) -> None:
    rows = pq.ParquetFile(run.path / "layer7.parquet").read().to_pylist()
    assert set(rows[0]) == {"norm", "ids", "acts", "border", "error"}
    assert (
        [len(row["ids"]) for row in rows] == [len(row["acts"]) for row in rows] == [2, 2, 2, 3, 2]
    )


def as_schema_2(run: Run, k: int) -> Run:
    """The same run in schema 2: k entries per token, where an activation of 0 does not fire."""
    manifest = json.loads((run.path / "manifest.json").read_text())
    for layer in run.layers:
        name = f"layer{layer}.parquet"
        table, (acts, ids) = run.read(name), padded(run.features(layer), k)
        for column, values in (("ids", ids.astype(np.uint16)), ("acts", acts)):
            rows = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), k)
            table = table.set_column(table.column_names.index(column), column, rows)
        pq.write_table(table, run.path / name)
        manifest["tables"][name] = hashlib.sha256((run.path / name).read_bytes()).hexdigest()
    for spec in manifest["job"]["saes"]:
        for later in ("format", "path"):
            spec.pop(later, None)
    text = json.dumps([2, manifest["job"]], sort_keys=True, ensure_ascii=False)
    del manifest["digest"], manifest["bytes"]
    manifest |= {"schema": 2, "fingerprint": hashlib.sha256(text.encode()).hexdigest()}
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    return Run.open(run.path)


def test_run_of_the_second_schema_is_read_and_verified(run: Run) -> None:
    new = {layer: run.features(layer) for layer in run.layers}
    old = as_schema_2(run, 3)
    assert verify(old.path) == []
    for layer, features in new.items():
        for name in ("norms", "counts", "acts", "ids", "next_pre_act"):
            assert np.array_equal(getattr(old.features(layer), name), getattr(features, name))
    assert old.saes[3] == run.saes[3]


def test_strongest_taken_and_joined(run: Run) -> None:
    features = run.features(7)
    acts, ids = padded(features, 3)
    assert np.array_equal(features.strongest(2), np.where(acts > 0, ids, -1)[:, :2])
    rows = np.array([4, 0, 0, 3])
    joined = LayerFeatures.joined([features.take(rows[:1]), features.take(rows[1:])])
    assert np.array_equal(padded(joined, 3)[0], acts[rows])
    assert np.array_equal(padded(joined, 3)[1], ids[rows])
    for feature in range(3):
        assert np.array_equal(features.fires(feature), ((ids == feature) & (acts > 0)).any(1))
        assert np.array_equal(features.acts_of(feature), np.where(ids == feature, acts, 0).max(1))
    empty = features.take(np.zeros(0, np.intp))
    assert len(empty.ids) == len(empty.strongest(2)) == len(empty.norms) == 0


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run: it has no manifest\.json"):
        Run.open(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 999}', '{"schema": 1}'])
def test_damaged_manifest_is_refused(run: Run, text: str) -> None:
    (run.path / "manifest.json").write_text(text)
    with pytest.raises(RunError):
        Run.open(run.path)


@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:50])]
)
def test_damaged_table_is_refused(run: Run, damage: Callable[[Path], object]) -> None:
    damage(run.path / "layer3.parquet")
    with pytest.raises(RunError, match=r"layer3\.parquet (is missing|was modified)"):
        run.features(3)
    assert len(run.features(7).norms) == 5


def test_layer_that_is_not_there_is_refused(run: Run) -> None:
    with pytest.raises(RunError, match="holds layers 3, 7, not 4"):
        run.features(4)


def test_manifest_says_what_made_it(run: Run) -> None:
    manifest = json.loads((run.path / "manifest.json").read_text())
    tables = {"prompts", "tokens", "layer3", "layer7", "resid3", "resid7"}
    assert set(manifest["tables"]) == {f"{name}.parquet" for name in tables}
    assert [sae["layer"] for sae in manifest["job"]["saes"]] == [3, 7]
    assert len(manifest["fingerprint"]) == 64
