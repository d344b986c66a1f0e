"""A run repeats from its manifest, and verification finds damage."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import Pair
from saescope.store.runs import Run
from saescope.store.verification import verify
from saescope.surfaces.cli import run as cli
from stored import edit_manifest, sign_table

pytestmark = pytest.mark.slow  # each test computes a run first


@pytest.fixture
def run_folder(
    pair: Pair, sets_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    pair_options = [
        "--model",
        str(pair.model),
        "--sae",
        str(pair.sae),
        "--layers",
        "0,2",
        "--batch-tokens",
        "64",
    ]
    assert (
        cli(
            [
                "contrast",
                str(sets_folder),
                *pair_options,
                "--n-top",
                "3",
                "--out",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )
    capsys.readouterr()
    return tmp_path / "run"


def test_rerun_is_the_same_and_answers_as_the_job_did(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["contrast", str(run_folder), "--n-top", "3", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert cli(["rerun", str(run_folder), "--json"]) == 0
    repeated = json.loads(capsys.readouterr().out)
    assert repeated.pop("rerun") == {"same": True, "differences": [], "verb": "contrast"}
    assert repeated == answer
    assert cli(["rerun", str(run_folder)]) == 0
    assert "the same, byte for byte" in capsys.readouterr().out


def test_two_runs_of_one_job_have_the_same_bytes(run_folder: Path, tmp_path: Path) -> None:
    assert cli(["rerun", str(run_folder), "--out", str(tmp_path / "again")]) == 0
    names = sorted(p.name for p in run_folder.iterdir())
    assert names == sorted(p.name for p in (tmp_path / "again").iterdir())
    for name in names:
        if name != "manifest.json":
            assert (run_folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_rerun_with_another_model_is_not_the_same(
    run_folder: Path, pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tiny

    other = str(tiny.save_model(tmp_path / "other", seed=1))
    edit_manifest(run_folder, lambda manifest: manifest["inputs"].update(model=other))
    assert cli(["rerun", str(run_folder), "--json"]) == 1
    differences = json.loads(capsys.readouterr().out)["rerun"]["differences"]
    assert any(line.startswith("model: was") for line in differences)
    assert any("of features are the same" in line for line in differences)


def test_rerun_where_the_model_is_gone_says_so(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_manifest(run_folder, lambda manifest: manifest["inputs"].update(model="/nowhere/model"))
    assert cli(["rerun", str(run_folder)]) == 2
    assert "/nowhere/model" in capsys.readouterr().err


def test_whole_run_verifies(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(run_folder) == []
    assert cli(["verify", str(run_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _replace(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (
        lambda run: _flip(run / "layer2.parquet"),
        "layer2.parquet was modified: its SHA-256 differs",
    ),
    "missing": (lambda run: (run / "tokens.parquet").unlink(), "tokens.parquet is missing"),
    "added": (
        lambda run: (run / "notes.txt").write_text("x"),
        "notes.txt is unexpected",
    ),
    "job changed": (
        lambda run: (run / "manifest.json").write_text(
            (run / "manifest.json").read_text().replace("float32", "bfloat16")
        ),
        "manifest.json was modified: its fingerprint does not match its job",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found(run_folder: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    act, message = DAMAGE[damage]
    act(run_folder)
    assert cli(["verify", str(run_folder), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is False
    assert any(message in line for line in result["problems"])


def test_table_of_another_schema_is_found(run_folder: Path) -> None:
    table = (
        pq.read_table(run_folder / "layer0.parquet").slice(0, 5).append_column("extra", pa.nulls(5))
    )
    pq.write_table(table, run_folder / "layer0.parquet")
    sign_table(run_folder, "layer0.parquet")
    assert any("has columns" in line for line in verify(run_folder))


def test_folder_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("verify", "rerun"):
        assert cli([verb, str(tmp_path)]) == 2
        assert "is not a run" in capsys.readouterr().err


def test_embedded_names_reopen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli(["profile", "--layers", "0", "--out", "run"]) == 0
    run = Run.open("run")
    assert run.manifest["inputs"] == {"model": "saescope-tiny", "saes": {"0": "saescope-tiny-sae"}}
    assert cli(["rerun", "run"]) == 0
