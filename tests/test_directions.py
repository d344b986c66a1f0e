"""Plain directions: computed, written, read back, and refused if invalid."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from conftest import Pair
from saescope.analysis.directions import difference_of_means
from saescope.control.edits import Edit, EditSet, parse_edit
from saescope.control.edits_file import read_edits, write_edits
from saescope.engine.extract import extract
from saescope.errors import EditError, PromptError, RunError, SourceError
from saescope.sources.directions import Direction, read_direction
from saescope.sources.prompt_sets import read_prompts
from saescope.sources.splits import split_prompts
from saescope.store.directions import write_directions
from saescope.store.runs import Run
from saescope.surfaces.cli import run as cli

V = np.arange(1, 5, dtype=np.float32)


def test_edits_of_directions_are_written_and_read_back(tmp_path: Path) -> None:
    direction = Direction(3, V, "by means", "m", "made of nothing")
    opposite = Direction(3, -V, "日本語")
    edits = (
        Edit(direction=direction, op="add", strength=2.5, scope="decode"),
        Edit("2/5", "scale", -1.0),
        Edit(direction=opposite, op="readout_clamp", strength=1.0, skip_sinks=False),
        Edit(direction=direction, op="project", strength=0.5),
    )
    edit_set = EditSet("m", "s", edits, 4, 9)
    write_edits(edit_set, tmp_path / "there" / "edits.toml", ["a comment"])
    read = read_edits(tmp_path / "there" / "edits.toml")
    assert read == edit_set
    assert [edit.layer for edit in read.edits] == [3, 2, 3, 3]
    assert [edit.name for edit in read.edits] == ["by means@3", "2/5", "日本語@3", "by means@3"]
    (tmp_path / "there").rename(tmp_path / "moved")  # the directions lie beside the edits
    assert read_edits(tmp_path / "moved" / "edits.toml") == edit_set


def test_directions_alone_need_no_sae(tmp_path: Path) -> None:
    edit_set = EditSet("m", "", (Edit(direction=Direction(0, V), op="add", strength=1),))
    write_edits(edit_set, tmp_path / "edits.toml")
    assert read_edits(tmp_path / "edits.toml") == edit_set
    assert "sae" not in (tmp_path / "edits.toml").read_text()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_vectors_of_others_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "my vector.safetensors"
    save_torch({"v": torch.from_numpy(V).to(dtype)}, path)
    edit = parse_edit(f'"{path}@17" add 2 relu decode')
    assert edit == Edit(
        direction=Direction(17, V, "my vector"), op="add", strength=2.0, scope="decode"
    )
    save_file({"direction.16": V, "direction.17": V * 2}, path)  # named as in a GGUF control vector
    assert parse_edit(f"'{path}@17' add 2").direction == Direction(17, V * 2, "my vector")
    assert parse_edit(f"'{path}#direction.16' project").direction == Direction(16, V, "my vector")
    (tmp_path / "edits.toml").write_text(
        'model = "m"\n[[edit]]\ndirection = "my vector.safetensors"\n'
        'layer = 16\nop = "add"\nstrength = 1'
    )
    assert read_edits(tmp_path / "edits.toml").edits[0].direction == Direction(16, V, "my vector")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a.safetensors add 1": ({"v": V}, "does not say its layer"),
    "a.safetensors@1 add 1": ({"v": V * np.nan}, "not finite"),
    "a.safetensors@1 add 2": ({"v": V * 0}, "zero everywhere"),
    "a.safetensors@1 add 3": ({"v": V[None]}, "2 dimensions, not 1"),
    "a.safetensors@1 add 4": ({"v": V.astype(np.int64)}, "I64 is not of floating point"),
    "a.safetensors@1 add 5": ({"v": V, "w": V}, "2 tensors, say which: a.safetensors#"),
    "a.safetensors#u@1 add 6": ({"v": V}, "no tensor 'u': it has v"),
    "a.safetensors@1 add 7": ({"direction.2": V}, "of layer 2, not 1"),
    "a.safetensors@1 add": ({"v": V}, "add needs a strength"),
    "a.safetensors@1 scale -1": (
        {"v": V},
        "scale needs a feature; a direction takes add, project, readout_clamp",
    ),
    "a.safetensors@1 clamp": ({"v": V}, "clamp needs a feature"),
    "a.safetensors@1": ({"v": V}, "scale needs a feature"),
    "b.safetensors@1 add 1": ({"v": V}, "does not exist"),
    "a.safetensors@1 add 8": ({"v": np.array([1e300, 1.0])}, "not finite"),
    "a.safetensors@1 add 1e39": ({"v": V}, "is not finite in float32"),
    "'a.safetensors add": ({"v": V}, "No closing quotation"),
}


@pytest.mark.parametrize("text", REFUSED)
def test_invalid_direction_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, message = REFUSED[text]
    monkeypatch.chdir(tmp_path)
    save_file(tensors, "a.safetensors")
    with pytest.raises(EditError) as caught:
        parse_edit(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for metadata in (
        "[",
        "[]",
        '{"v": 3}',
        '{"v": {"layer": "x"}}',
        '{"v": {"layer": -1}}',
        "[" * 100_000,
    ):
        save_file({"v": V}, path, {"saescope_directions": metadata})
        with pytest.raises(SourceError, match="damaged metadata"):
            read_direction(path)
    save_file(
        {"v": V}, path, {"saescope_directions": json.dumps({"v": {"layer": 1, "name": "a\nb"}})}
    )
    with pytest.raises(SourceError, match="in one line"):
        read_direction(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(SourceError, match="not a readable safetensors file"):
        read_direction(path)
    with pytest.raises(SourceError, match="not a readable safetensors file"):
        read_direction(tmp_path)


def test_directions_do_not_change() -> None:
    values = V.astype(np.float64)
    direction = Direction(1, values)
    values[0] = 9
    assert direction == Direction(1, V)
    assert hash(direction) == hash(Direction(1, V))
    with pytest.raises(ValueError, match="read-only"):
        direction.values[0] = 3


# --- a difference of means


@pytest.fixture
def run(pair: Pair, sets_folder: Path, tmp_path: Path) -> Run:
    lm, saes = pair.load(0, 2)
    return extract(lm, saes, read_prompts(sets_folder), tmp_path / "run")


@pytest.mark.parametrize("position", ["mean", "last"])
def test_difference_of_means_is_of_discovery_prompts(run: Run, position: str) -> None:
    sides = split_prompts(run.prompts, seed=3)
    resid = getattr(run.resids(2), position).astype(np.float64)
    chosen = {
        name: resid[
            [
                p.set == name and side == "discovery"
                for p, side in zip(run.prompts, sides, strict=True)
            ]
        ]
        for name in run.sets
    }
    direction = difference_of_means(run, "red", 2, position=position, seed=3)
    others = np.concatenate([chosen["green"], chosen["blue"]])
    np.testing.assert_allclose(
        direction.values, chosen["red"].mean(0) - others.mean(0), rtol=1e-5, atol=1e-6
    )
    assert (direction.layer, direction.model) == (2, run.model.repo)
    assert len(direction.values) == run.model.d_model
    assert (
        f"{len(chosen['red'])} discovery prompts of red less mean over {len(others)}"
        in direction.origin
    )
    every = difference_of_means(
        run, "red", 2, position=position, against=["blue"], every_prompt=True
    )
    np.testing.assert_allclose(
        every.values, resid[24:].mean(0) - resid[:12].mean(0), rtol=1e-4, atol=1e-5
    )
    assert run.sets == ("blue", "green", "red")


def replaced(run: Run, **fields: Any) -> Run:
    other = Run(run.path, run.manifest)
    other.__dict__["prompts"] = tuple(replace(p, **fields) for p in run.prompts)
    return other


def test_difference_of_means_refuses_what_is_not_there(run: Run) -> None:
    with pytest.raises(PromptError, match="no set 'pink'"):
        difference_of_means(run, "pink", 2)
    with pytest.raises(RunError, match="holds layers 0, 2, not 1"):
        difference_of_means(run, "red", 1)
    with pytest.raises(PromptError, match="red: no discovery prompt has a position"):
        difference_of_means(replaced(run, split="holdout"), "red", 2)


@pytest.mark.slow
def test_detect_writes_what_steer_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["--model", "saescope-tiny-chat", "--sae", "saescope-tiny-chat-sae"]
    path = tmp_path / "means.safetensors"
    arguments = [
        "detect",
        "requests",
        "--target",
        "declined_en",
        "--against",
        "answered_en",
        *pair,
        "--layers",
        "2",
    ]
    options = [
        "--direction",
        str(path),
        "--position",
        "last",
        "--shuffles",
        "0",
        "--out",
        str(tmp_path / "run"),
        "--json",
    ]
    assert cli([*arguments, *options]) == 0
    assert json.loads(capsys.readouterr().out)["direction"] == str(path)
    written = read_direction(path)
    assert (written.name, written.layer, written.model) == (
        "declined_en by means",
        2,
        "saescope-tiny-chat",
    )
    request = "Who has the lighthouses? Lakshmi has 2 white lighthouses on the street."
    chat = ["steer", request, "--chat", "--no-thinking", "--json", "--model", "saescope-tiny-chat"]
    assert cli([*chat, "--edit", f"{path} project"]) == 0  # no SAE is needed
    result = json.loads(capsys.readouterr().out)
    assert "sorry" in result["base"]
    assert "Lakshmi" in result["steered"]
    assert result["receipt"]["fired"]["declined_en by means@2"] == result["receipt"]["positions"]


@pytest.mark.slow
def test_directions_of_another_width_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_directions([Direction(2, V, "narrow")], tmp_path / "a.safetensors")
    assert cli(["steer", "hello there", "--edit", f"{tmp_path / 'a.safetensors'} add 1"]) == 2
    assert (
        "narrow@2: direction has 4 dimensions, the residual of saescope-tiny has 192"
        in capsys.readouterr().err
    )
