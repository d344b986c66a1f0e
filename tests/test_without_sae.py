"""Tokens and norms need no SAE; an SAE of another width than the model is refused by `plan`."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tiny
from conftest import Pair
from saescope.analysis.profile import profile
from saescope.engine.extract import extract
from saescope.engine.norms import measure_norms
from saescope.sources.prompts import texts
from saescope.sources.sae_width import width_of_size, widths_in_file
from saescope.surfaces.cli import run as run_cli

LINES = ["The hill is behind the house.", "丘があります。", "A longer line of text to read here."]


def test_norms_without_an_sae_are_those_of_a_run(pair: Pair, tmp_path: Path) -> None:
    lm, saes = pair.load(0, 2)
    sets = [*texts(LINES, "a"), *texts(LINES[::-1], "b")]
    run = extract(lm, saes, sets, tmp_path / "run")
    norms = measure_norms(lm, [2, 0], sets)
    for layer in (0, 2):
        assert norms.norms(layer).tolist() == run.norms(layer).tolist()
    with_run, alone = profile(run).to_dict(), profile(norms).to_dict()
    assert (with_run.pop("run"), alone.pop("run")) == (str(run.path), None)
    assert with_run == alone


def test_profile_works_with_a_model_alone(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "lines.txt").write_text("\n".join(LINES), encoding="utf-8")
    arguments = ["profile", "sets", "--model", str(pair.model)]
    assert run_cli([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["run"] is None
    assert result["sets"]["lines"]["tokens"] > 0
    assert len(result["sets"]["lines"]["layers"]) == 1
    assert run_cli([*arguments, "--layers", "all"]) == 0
    out, err = capsys.readouterr()
    assert "residual norms, layer 0" in out
    assert "features were not computed" in err
    assert not Path("runs").exists()
    assert run_cli([*arguments, "--layers", "99"]) == 2
    assert "has layers 0-" in capsys.readouterr().err
    assert run_cli([*arguments, "--out", "made"]) == 2
    assert "--out needs an SAE" in capsys.readouterr().err


@pytest.mark.parametrize(("d_model", "d_sae"), [(16, 64), (48, 32), (5, 7)])
def test_width_is_read_from_sizes_alone(tmp_path: Path, d_model: int, d_sae: int) -> None:
    tensors = tiny.sae_tensors(seed=0, d_model=d_model, d_sae=d_sae)
    torch.save(tensors, tmp_path / "layer0.sae.pt")
    save_file(
        {name: t.to(torch.bfloat16) for name, t in tensors.items()}, tmp_path / "a.safetensors"
    )
    (tmp_path / "text").write_text("no SAE")
    for name in ("layer0.sae.pt", "a.safetensors"):
        assert set(widths_in_file(tmp_path / name)) == {d_model, d_sae}
    assert widths_in_file(tmp_path / "text") == ()


def test_width_of_a_release_follows_from_its_size() -> None:
    assert width_of_size(2_147_762_176, 65_536) == 4096
    assert width_of_size(537_010_176 + 2500, 32_768) == 2048
    assert width_of_size(537_010_176, 16_384) is None  # another number of features


@pytest.mark.parametrize("kind", ["qwen-scope", "saelens"])
@pytest.mark.parametrize("verb", ["plan", "fetch"])
def test_a_width_that_does_not_fit_is_refused_by_plan(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, verb: str
) -> None:
    save = tiny.save_sae if kind == "qwen-scope" else tiny.save_saelens
    sae = save(tmp_path / "sae", layers=[1], d_model=24, d_sae=96)
    arguments = [verb, "--model", str(pair.model), "--sae", str(sae), "--layers", "1"]
    assert run_cli(arguments) == 2
    err = capsys.readouterr().err
    assert "layer 1 reads residuals 24 wide" in err
    assert "do not belong together" in err
