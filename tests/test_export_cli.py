"""`saescope export` as typed: each format is written, and errors take one line."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

import tiny
from conftest import Pair
from saescope.control.edits import Edit, EditSet
from saescope.control.edits_file import write_edits
from saescope.surfaces.cli import run as cli
from test_cli_hostile import assert_refused


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def neutral(tmp_path: Path) -> Path:
    (tmp_path / "plain.txt").mkdir()
    (tmp_path / "plain.txt" / "plain.txt").write_text(
        "\n".join(t for t in tiny.TEXTS if "\n" not in t)
    )
    return tmp_path / "plain.txt"


def exported(capfd: pytest.CaptureFixture[str], pair: Pair, *arguments: str) -> dict[str, Any]:
    capfd.readouterr()
    code = cli(["export", *arguments, "--model", str(pair.model), "--sae", str(pair.sae), "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err
    result: dict[str, Any] = json.loads(out)
    assert result["files"] == [str(path) for path in map(Path, result["files"]) if path.is_file()]
    assert result.keys() >= {"format", "out", "files", "exact", "equals", "limits"}
    return result


def test_gguf_of_an_edits_file(pair: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    edits = EditSet(str(pair.model), str(pair.sae), (Edit("1/3", "add", 2.0, skip_sinks=False),))
    write_edits(edits, Path("edits.toml"))
    result = exported(
        capfd, pair, "--format", "gguf", "--out", "new/x.gguf", "--edits", "edits.toml"
    )
    assert (result["exact"], result["files"]) == (True, ["new/x.gguf"])
    assert [tensor.name for tensor in gguf.GGUFReader("new/x.gguf").tensors] == ["direction.1"]


def test_gguf_of_an_edit_with_limits_is_measured(
    pair: Pair, neutral: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edit = ["--format", "gguf", "--edit", "1/3 add 2"]
    result = exported(capfd, pair, *edit, "--out", "x.gguf", "--neutral", str(neutral))
    assert (result["exact"], len(result["limits"])) == (False, 1)
    assert result["kl_steered_vector"]["mean"] > 0
    result = exported(capfd, pair, *edit, "--out", "y.gguf", "--no-measure")
    assert "kl_steered_vector" not in result
    assert Path("x.gguf").read_bytes() == Path("y.gguf").read_bytes()


@pytest.mark.slow
def test_lora_command_exports_and_measures(
    pair: Pair, neutral: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = exported(
        capfd,
        pair,
        "--format",
        "lora",
        "--out",
        "a",
        "--edit",
        "1/3 project 1",
        "--neutral",
        str(neutral),
    )
    assert (result["exact"], result["rank"]) == (True, 1)
    assert result["kl_hook_adapter"]["mean"] < 1e-6 < result["kl_steered_adapter"]["mean"]
    arguments = ["--edit", "1/3 project 1", "--model", str(pair.model), "--sae", str(pair.sae)]
    neutral_option = ["--neutral", str(neutral)]
    assert cli(["export", "--format", "lora", "--out", "b", *arguments, *neutral_option]) == 0
    shown = capfd.readouterr().out
    assert "KL from the projection by hooks to the adapter" in shown
    assert "exact" in shown


def test_saelens_needs_no_model(pair: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        cli(
            [
                "export",
                "--format",
                "saelens",
                "--sae",
                str(pair.sae),
                "--layers",
                "2",
                "--out",
                "one",
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capfd.readouterr().out)["files"] == [
        "one/cfg.json",
        "one/sae_weights.safetensors",
    ]
    result = exported(capfd, pair, "--format", "saelens", "--layers", "all", "--out", "all")
    assert result["layers"] == [0, 1, 2]
    assert len(result["files"]) == 6


@pytest.mark.slow
def test_neuronpedia_of_a_run(
    pair: Pair, sets_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    of = ["--model", str(pair.model), "--sae", str(pair.sae)]
    assert cli(["contrast", str(sets_folder), *of, "--layers", "0,2", "--out", "run"]) == 0
    result = exported(
        capfd,
        pair,
        "--format",
        "neuronpedia",
        "--run",
        "run",
        "--layers",
        "2",
        "--name",
        "x",
        "--out",
        "n",
    )
    assert "n/model/2-x/source.jsonl" in result["files"]
    assert result["limits"] == []
    result = exported(
        capfd, pair, "--format", "neuronpedia", "--run", "run", "--no-logits", "--out", "m"
    )
    assert len(result["limits"]) == 1
    assert result["features"].keys() == {"0", "2"}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["gguf"], "nothing to edit"),
        (["lora", "--edit", "1/3 scale -1"], "needs an encoder"),
        (["gguf", "--edit", "0/3 add 1"], "after block 0"),
        (["gguf", "--edit", "1/999 add 1"], "has 256 features"),
        (["saelens", "--edit", "1/3 add 1"], "takes no edits: gguf and lora do"),
        (["saelens", "--layers", "9"], "has layers 0-2"),
        (["saelens", "--layers", "x"], "expected numbers"),
        (["neuronpedia"], "give a run made before"),
        (["neuronpedia", "--run", "."], "is not a run"),
        (["gguf", "--run", ".", "--edit", "1/3 add 1"], "takes no run"),
        (["onnx"], "onnx"),
    ],
)
def test_a_wrong_request_is_one_clear_error(
    arguments: list[str], why: str, pair: Pair, capfd: pytest.CaptureFixture[str]
) -> None:
    of = ["--model", str(pair.model), "--sae", str(pair.sae)]
    assert_refused(["export", "--format", *arguments, "--out", "out", *of], capfd, why)


def test_nothing_is_overwritten(pair: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/mine").touch()
    for format in ("gguf", "lora", "saelens", "neuronpedia"):
        assert_refused(
            ["export", "--format", format, "--out", "out"],
            capfd,
            "out exists: choose another place",
        )
