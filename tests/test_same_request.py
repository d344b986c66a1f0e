"""A run, an SAE, an evaluation is reused only where everything it was made from is the same."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from conftest import Pair
from saescope.control.edits import EditSet
from saescope.engine.extract import extract, job
from saescope.engine.lm import load_lm
from saescope.engine.load import fingerprint_as, load_sae
from saescope.engine.numerics import threads
from saescope.sources import fingerprints, stored_files
from saescope.sources.prompts import texts
from saescope.store.runs import Run
from saescope.store.verification import verify
from saescope.surfaces.cli import run as cli
from stored import edit_manifest, without

LONG_BEGINNING = "the same long beginning of every prompt, which is computed once " * 2
SHARED = texts([f"{LONG_BEGINNING}{word}" for word in ("red", "green", "blue", "grey")])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save_model(tmp_path / "model", max_length=256)


@pytest.fixture
def sae(tmp_path: Path) -> Path:
    return tiny.save_sae(tmp_path / "sae")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as large, and no SHA-256 is quickly known."""
    monkeypatch.setattr(fingerprints, "_WHOLE_LIMIT", 0)
    monkeypatch.setattr(stored_files, "_QUICK_BYTES", 0)


def change(folder: Path, tensor: str, times: float = 5.0) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    state[tensor] = state[tensor] * times
    save_file(state, path, {"format": "pt"})


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("changed", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
def test_a_changed_model_has_another_run(model: Path, sae: Path, changed: str) -> None:
    def fingerprint() -> str:
        return job(load_lm(model, [0]), [load_sae(sae, 0)], SHARED, 100).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    change(model, changed)
    assert fingerprint() != before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_changed_text_file_has_another_run(model: Path, sae: Path, name: str) -> None:
    before = load_lm(model, [0]).spec.fingerprint
    (model / name).write_text((model / name).read_text() + "\n")
    assert load_lm(model, [0]).spec.fingerprint != before


def test_generated_text_is_told_by_all_shards(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", shard_size="20KB")
    lm = load_lm(model, [0])
    before = lm.whole_fingerprint
    index = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    shard = model / index["model.layers.2.mlp.up_proj.weight"]
    state = load_file(shard)
    state["model.layers.2.mlp.up_proj.weight"] *= 2
    save_file(state, shard, {"format": "pt"})
    again = load_lm(model, [0])
    assert again.spec.fingerprint == lm.spec.fingerprint  # that block was not read
    assert again.whole_fingerprint != before


@pytest.mark.usefixtures("large")
def test_a_changed_sae_is_another_one(sae: Path) -> None:
    before = load_sae(sae, 0).spec.fingerprint
    state = torch.load(sae / "layer0.sae.pt", weights_only=True)
    state["b_enc"][3] += 1
    torch.save(state, sae / "layer0.sae.pt")
    assert load_sae(sae, 0).spec.fingerprint != before


def test_shared_prefixes_are_told_by_the_fingerprint(
    model: Path, sae: Path, tmp_path: Path
) -> None:
    saes = [load_sae(sae, 1)]
    whole = load_lm(model, [1])
    lms = {
        "shared": whole,
        "streamed": load_lm(model, [1], streamed=True),
        "separate": replace(whole, shares_prefixes=False),
    }
    runs = {name: extract(lm, saes, SHARED, tmp_path / name) for name, lm in lms.items()}
    marks = {name: run.manifest["fingerprint"] for name, run in runs.items()}
    tables = {name: run.manifest["tables"] for name, run in runs.items()}
    assert marks["shared"] != marks["streamed"]
    assert marks["separate"] == marks["streamed"]
    assert tables["separate"] == tables["streamed"]
    for name in lms:
        assert cli(["rerun", str(tmp_path / name)]) == 0


def test_threads_are_told_by_the_fingerprint(model: Path, sae: Path, tmp_path: Path) -> None:
    lm, saes = load_lm(model, [0]), [load_sae(sae, 0)]
    before = torch.get_num_threads()
    with threads(before + 1):
        run = extract(lm, saes, texts(tiny.TEXTS), tmp_path / "run")
    assert job(lm, saes, texts(tiny.TEXTS), 2048).fingerprint != run.manifest["fingerprint"]
    assert cli(["rerun", str(tmp_path / "run"), "--out", str(tmp_path / "again")]) == 0
    again = Run.open(tmp_path / "again")
    assert again.manifest["fingerprint"] == run.manifest["fingerprint"]
    assert torch.get_num_threads() == before


def test_a_partial_run_of_a_changed_model_is_not_taken_up(
    model: Path, sae: Path, tmp_path: Path
) -> None:
    saes = [load_sae(sae, layer) for layer in (0, 1)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(load_lm(model, [1]), saes, SHARED, tmp_path / "run", progress=stop)
    assert list((tmp_path / ".run.partial").glob("*.npz"))
    change(model, "model.layers.0.input_layernorm.weight")
    lm = load_lm(model, [1])
    resumed = extract(lm, saes, SHARED, tmp_path / "run")
    assert (
        resumed.manifest["tables"] == extract(lm, saes, SHARED, tmp_path / "new").manifest["tables"]
    )


def test_a_batch_that_was_cut_off_is_computed_again(model: Path, sae: Path, tmp_path: Path) -> None:
    lm, saes = load_lm(model, [1]), [load_sae(sae, layer) for layer in (0, 1)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(lm, saes, SHARED, tmp_path / "run", progress=stop)
    [batch] = (tmp_path / ".run.partial").glob("*.npz")
    batch.write_bytes(batch.read_bytes()[:1000])
    resumed = extract(lm, saes, SHARED, tmp_path / "run")
    whole = extract(lm, saes, SHARED, tmp_path / "whole")
    assert resumed.manifest["tables"] == whole.manifest["tables"]


# --- verify --full


def verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    code = cli(["verify", str(folder), "--full", "--json"])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == (0 if answer["ok"] else 1)
    return answer


def flip(path: Path) -> None:
    """Change one bit in the middle, and set the modification time back."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


INPUTS: dict[str, Callable[[Path, Path], Path]] = {
    "model": lambda model, _: model / "model.safetensors",
    "tokenizer": lambda model, _: model / "tokenizer.json",
    "SAE": lambda _, sae: sae / "layer1.sae.pt",
}


@pytest.mark.parametrize("which", INPUTS)
@pytest.mark.parametrize("hashing", ["small files", "large files, hashed"])
def test_verify_full_sees_every_bit(
    which: str,
    hashing: str,
    model: Path,
    sae: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if hashing != "small files":
        request.getfixturevalue("large")
    lm, saes = load_lm(model, [1]), [load_sae(sae, 1)]
    extract(lm, saes, SHARED, tmp_path / "run", hash_files=hashing != "small files")
    assert verified(tmp_path / "run", capsys) == {
        "ok": True,
        "problems": [],
        "run": str(tmp_path / "run"),
        "unproven": [],
    }
    path = INPUTS[which](model, sae)
    flip(path)
    [problem] = verified(tmp_path / "run", capsys)["problems"]
    assert f"{path.name} changed: its SHA-256" in problem
    assert verify(tmp_path / "run") == []
    path.unlink()
    [problem] = verified(tmp_path / "run", capsys)["problems"]
    assert f"{path.name} is missing" in problem


@pytest.mark.usefixtures("large")
def test_verify_full_says_what_it_cannot_prove(
    model: Path, sae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(load_lm(model, [1]), [load_sae(sae, 1)], SHARED, tmp_path / "run")
    answer = verified(tmp_path / "run", capsys)
    assert answer["ok"]
    assert f"{model}: model.safetensors" in answer["unproven"]
    change(model, "model.layers.1.mlp.up_proj.weight")
    [problem] = verified(tmp_path / "run", capsys)["problems"]
    assert "model.safetensors changed: its fingerprint" in problem


# --- runs and edits of earlier versions


@pytest.mark.usefixtures("large")
def test_fingerprints_of_earlier_versions_still_name_the_same_sae(pair: Pair) -> None:
    sae = load_sae(pair.sae, 1)
    path = pair.sae / "layer1.sae.pt"
    earlier = fingerprints.fingerprint_like(path, "sampled-sha256:")
    assert sae.spec.fingerprint.startswith("parts-sha256:")
    assert fingerprint_as(sae, earlier) == earlier
    edits = EditSet(str(pair.model), str(pair.sae), (), sae_files={"1": earlier})
    edits.check_sae(replace(sae.spec, fingerprint=fingerprint_as(sae, earlier)))
    assert fingerprint_as(load_sae(pair.sae, 2), earlier) != earlier


def test_a_run_without_recorded_files_verifies(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm, saes = pair.load(1)
    extract(lm, saes, SHARED[:1], tmp_path / "run")
    edit_manifest(tmp_path / "run", without("files"))
    answer = verified(tmp_path / "run", capsys)
    assert answer["ok"]
    assert "an earlier version" in answer["unproven"][0]
