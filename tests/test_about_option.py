"""--about: what edits act about on the command line, in files and in results."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import Pair
from saescope.control.edits import Edit, EditSet
from saescope.control.edits_file import write_edits
from saescope.engine.neutral_means import neutral_means
from saescope.jobs.edits import EditInputs
from saescope.jobs.neutral import measured_means, with_means
from saescope.jobs.reporter import SILENT
from saescope.sources.neutral_mean import NeutralMean
from saescope.sources.prompts import texts
from saescope.surfaces.cli import run as cli

Steer = Callable[..., dict[str, Any]]
EDITS_FILE = """
[[edit]]
feature = "1/5"
op = "project"
[[edit]]
feature = "1/6"
op = "add"
strength = 2.0
"""


@pytest.fixture
def steer(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Steer:
    """Run `steer --json` on a neutral text, and return its receipt."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "plain.txt").write_text("the hill is there\nthe hen in the inn\n")

    def run(*options: str) -> dict[str, Any]:
        models = ["--model", str(pair.model), "--sae", str(pair.sae)]
        texts = ["--neutral", str(tmp_path / "plain")]
        command = ["steer", "the hen", "--max-new-tokens", "2", *models, *texts, *options, "--json"]
        capsys.readouterr()
        code = cli(command)
        out, err = capsys.readouterr()
        assert code == 0, err
        return {**json.loads(out)["receipt"], "stderr": err}

    return run


def abouts(receipt: dict[str, Any]) -> list[str | None]:
    return [row["about"] for row in receipt["edits"]]


def test_edits_in_words_act_about_the_mean(steer: Steer, pair: Pair) -> None:
    receipt = steer("--edit", "1/5 project", "--edit", "1/6 add 2")
    assert abouts(receipt) == ["mean", None]
    lm, _ = pair.load(1)
    prompts = texts(["the hill is there", "the hen in the inn"])[0].prompts
    mean = neutral_means(lm, [1], prompts)[1]
    assert receipt["means"]["1"] == {**mean.to_dict(), "source": "2 texts of plain"}
    assert receipt["spread_ratio"] > 0


def test_zero_keeps_the_old_meaning(steer: Steer) -> None:
    receipt = steer("--edit", "1/5 project", "--about", "zero")
    assert abouts(receipt) == ["zero"]
    assert (receipt["means"], receipt["spread_ratio"]) == ({}, None)


def test_a_file_without_a_mean_keeps_its_meaning(steer: Steer, pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "edits.toml"
    path.write_text(f'model = "{pair.model}"\nsae = "{pair.sae}"\n{EDITS_FILE}')
    earlier = steer("--edits", str(path))
    assert abouts(earlier) == ["zero", None]
    assert "act about zero" in earlier["stderr"]
    assert earlier["spread_ratio"] > 0  # the add edit may know the spread: it stays the same edit
    assert abouts(steer("--edits", str(path), "--about", "mean")) == ["mean", None]


def test_a_mean_in_a_file_is_kept(steer: Steer, pair: Pair, tmp_path: Path) -> None:
    lm, _ = pair.load(1)
    mean = replace(neutral_means(lm, [1], texts(["another text"])[0].prompts)[1], source="other")
    path = tmp_path / "edits.toml"
    edits = (Edit("1/5", "project", about=mean), Edit("1/6", "project"))
    write_edits(EditSet(str(pair.model), str(pair.sae), edits), path)
    receipt = steer("--edits", str(path), "--edit", "1/7 project")
    assert abouts(receipt) == ["mean", "zero", "mean"]
    assert receipt["means"]["1"]["source"] == "other"
    assert abouts(steer("--edits", str(path), "--about", "zero")) == ["zero", "zero"]


def test_a_mean_is_measured_once_per_model_and_text(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAESCOPE_CACHE", str(tmp_path / "cache"))
    lm, _ = pair.load(1)
    first, second = (texts([text])[0].prompts for text in ("the hill", "the inn is there"))
    measured = measured_means(lm, [0, 1], first, SILENT)
    monkeypatch.setattr("saescope.engine.neutral_means.neutral_means", _refuse)
    assert measured_means(lm, [0, 1], first, SILENT) == measured
    with pytest.raises(AssertionError, match="measured again"):
        measured_means(lm, [1], second, SILENT)
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text('{"values": "AA", "spread": 1, "positions": 1, "source": ""}')
    with pytest.raises(AssertionError, match="measured again"):
        measured_means(lm, [1], first, SILENT)


def test_nothing_is_measured_that_no_edit_needs() -> None:
    edit_set = EditSet("m", "s", (Edit("1/5", "scale"), Edit("1/6", "project", about=None)))
    inputs = EditInputs(edits=Path("edits.toml"))
    assert with_means(inputs, edit_set, _refuse, SILENT, every_op=False) == edit_set


def _refuse(*_: object) -> dict[int, NeutralMean]:
    raise AssertionError("measured again")
