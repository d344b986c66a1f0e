"""`bake` and `export` write first, then measure on a sample; an interrupt keeps what is written."""

import json

import numpy as np
import pytest

import tiny
from saescope.control.baking import bake as baking
from saescope.control.baking.bake import bake
from saescope.control.baking.settings import BakeSettings
from saescope.control.edits import Edit
from saescope.control.exports import lora
from saescope.control.exports.lora import export_lora
from saescope.control.exports.settings import ExportSettings
from saescope.control.measured_text import SAMPLE_TEXTS, extent, measured_part
from saescope.errors import Interrupted
from saescope.sources.directions import Direction
from saescope.sources.prompts import texts
from saescope.surfaces.cli import run as cli

LINES = [f"{text} {n}" for n in range(6) for text in tiny.TEXTS]
NEUTRAL = texts(LINES)[0].prompts
EDIT = Edit(op="project", strength=1.0, direction=Direction(1, np.arange(1.0, 33.0), "d"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("measured") / "model")


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_true_and_false_are_the_full_text_and_none():
    assert [extent(measure) for measure in (True, False, "sample")] == ["full", "none", "sample"]


def test_a_sample_is_spread_over_the_texts():
    assert len(measured_part(NEUTRAL, "sample")) == SAMPLE_TEXTS < len(NEUTRAL)
    assert measured_part(NEUTRAL, "sample")[-1].id == NEUTRAL[-2].id
    assert measured_part(NEUTRAL[:3], "sample") == list(NEUTRAL[:3])
    assert measured_part(NEUTRAL, "none") == []


@pytest.mark.slow
def test_bake_writes_first_and_measures_on_a_sample(model, tmp_path):
    stages = []

    def progress(stage, *_):
        if stage not in stages:
            stages.append(stage)

    sample = bake(model, (), [EDIT], tmp_path / "a", neutral=NEUTRAL, progress=progress)
    assert stages == ["writing", "measuring", "comparing"]
    full = bake(model, (), [EDIT], tmp_path / "b", BakeSettings(measure="full"), neutral=NEUTRAL)
    assert sample.kl_base_baked.tokens < full.kl_base_baked.tokens
    assert any("sample of 32 texts" in note for note in sample.notes)
    assert not any("sample" in note for note in full.notes)
    assert sample.kl_base_baked.mean == pytest.approx(full.kl_base_baked.mean, rel=0.3)


def test_an_interrupt_while_measuring_keeps_an_exact_bake(model, tmp_path, monkeypatch):
    monkeypatch.setattr(baking, "record_base", interrupted)
    with pytest.raises(Interrupted, match=r"out is complete, its distances are not measured"):
        bake(model, (), [EDIT], tmp_path / "out", neutral=NEUTRAL)
    manifest = json.loads((tmp_path / "out/saescope_bake.json").read_text())
    assert "Nothing was measured: measuring was interrupted." in json.dumps(manifest)
    plain = bake(model, (), [EDIT], tmp_path / "plain", BakeSettings(measure="none"))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "plain")]
    assert weights[0] == weights[1]
    assert plain.kl_base_baked is None


def test_an_interrupt_keeps_no_unchecked_approximation(model, tmp_path, monkeypatch):
    monkeypatch.setattr(baking, "record_base", interrupted)
    settings = BakeSettings(method="next-layer")
    with pytest.raises(KeyboardInterrupt):
        bake(model, (), [EDIT], tmp_path / "out", settings, neutral=NEUTRAL)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_measuring_keeps_an_export(model, tmp_path, monkeypatch):
    monkeypatch.setattr(lora, "_measure", interrupted)
    settings = ExportSettings(neutral=NEUTRAL)
    with pytest.raises(Interrupted, match="out is complete"):
        export_lora(model, (), [EDIT], tmp_path / "out", settings)
    assert (tmp_path / "out/adapter_model.safetensors").is_file()


def test_the_command_line_says_what_is_kept_and_how_to_measure(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(baking, "record_base", interrupted)
    arguments = ["bake", "--edit", "2/5 project", "--out", "baked", "--measure", "full"]
    assert cli(arguments) == 130
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        "saescope: interrupted; baked is complete, its distances are not measured; to measure "
        "them, remove it and run: saescope bake --edit '2/5 project' --out baked --measure full"
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--measure", "none"], ["--no-measure"]])
def test_no_measure_is_measure_none(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(baking, "record_base", interrupted)
    assert cli(["bake", "--edit", "2/5 project", "--out", "baked", "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["kl_base_baked"] is None
    assert cli(["bake", "--edit", "2/5 project", "--out", "x", "--measure", "much"]) == 2
