"""A run is read back as it was written, and refused when it is not one."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from saescope.errors import RunError
from saescope.store.runs import Run
from stored import write_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    fires = np.arange(15).reshape(5, 3) % 4 == 0
    return write_run(tmp_path / "run", {"a": [2], "b": [2, 1]}, {3: fires, 7: ~fires}, paired=True)


def test_stored_is_read_back(run: Run) -> None:
    again = Run.open(run.path)
    assert (again.layers, again.sets, again.set_of_prompt.tolist()) == ((3, 7), ("a", "b"), [0, 1, 1])
    assert again.token_prompt.tolist() == [0, 0, 1, 1, 2]
    assert again.token_pos.tolist() == [0, 1, 0, 1, 0]
    assert [prompt.pair for prompt in again.prompts] == ["0", "0", "1"]
    found = again.features(3)
    fires = np.zeros((5, 3), bool)
    fires[np.arange(5)[:, None], found.ids] = found.acts > 0
    assert np.array_equal(fires, np.arange(15).reshape(5, 3) % 4 == 0)
    assert found.ids.dtype == np.uint16


def test_any_parquet_reader_can_open_it(run: Run) -> None:
    row = pq.ParquetFile(run.path / "layer7.parquet").read().to_pylist()[0]
    assert set(row) == {"norm", "ids", "acts", "border", "error"}
    assert len(row["ids"]) == len(row["acts"]) == 3


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is no run: it has no manifest\.json"):
        Run.open(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 999}', '{"schema": 1}'])
def test_damaged_manifest_is_refused(run: Run, text: str) -> None:
    (run.path / "manifest.json").write_text(text)
    with pytest.raises(RunError):
        Run.open(run.path)


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:50])])
def test_damaged_table_is_refused(run: Run, damage: Callable[[Path], object]) -> None:
    damage(run.path / "layer3.parquet")
    with pytest.raises(RunError, match=r"layer3\.parquet is damaged or missing"):
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
