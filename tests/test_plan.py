"""A job's plan before anything is fetched: files, bytes, memory, work, and whether it fits."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import shapes
import tiny
from benchmarks.shapes import SHAPES
from conftest import Pair
from saescope.engine.contents import Contents
from saescope.engine.lm import load_lm
from saescope.engine.needs import ModelSizes, needed_parameters
from saescope.sources.budget import LIBRARIES, WeightBytes
from saescope.sources.files import open_files
from saescope.surfaces.cli import run

SHAPE = SHAPES["qwen3-8b"]
BLOCK = 2 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 12_288 + 2 * 4096 + 2 * 128)
EMBEDDING = 2 * 151_936 * 4096


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Qwen3-8B-Base and its W64K SAE in their true sizes, without weights."""
    folder = tmp_path_factory.mktemp("large")
    pair = Pair(folder / "Qwen3-8B-Base", folder / "SAE-Res-Qwen3-8B-Base-W64K-L0_50")
    shapes.save(SHAPE, pair.model, pair.sae, range(36))
    return pair


def run_plan(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Return the plan's JSON; it ends with 1 exactly if the job does not fit."""
    capfd.readouterr()
    code = run(["plan", *arguments, "--json"])
    out, err = capfd.readouterr()
    assert code in (0, 1), err
    result: dict[str, Any] = json.loads(out)
    assert code == int(not result["fits"])
    return result


def options_for(pair: Pair, *options: str) -> list[str]:
    return ["--model", str(pair.model), "--sae", str(pair.sae), "--device", "cpu", *options]


@pytest.mark.slow
def test_true_sizes_of_an_8b_model_and_its_sae(
    large: Pair, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = run_plan(capfd, *options_for(large, "--layers", "17", "--memory", "16GiB"))
    sizes = {file["name"]: file["bytes"] for file in plan["files"]}
    assert sizes["layer17.sae.pt"] == 2_147_762_176  # 2.148 GB a layer
    assert sorted(sizes) == sorted(
        ["config.json", "tokenizer.json", "model.safetensors.index.json", "layer17.sae.pt"]
        + [f"model-{n:05d}-of-00005.safetensors" for n in (1, 2, 3)]
    )
    assert plan["disk_bytes"] == sum(sizes.values())
    assert (plan["download_bytes"], plan["dtype"], plan["mode"]) == (0, "bfloat16", "cut")
    assert all(file["have"] for file in plan["files"])
    encoder = 4 * 65_536 * 4097
    assert plan["memory"]["cut"]["file_backed"] == LIBRARIES + encoder
    assert plan["memory"]["whole"]["file_backed"] == LIBRARIES + SHAPE.model_bytes + encoder
    assert plan["memory_bytes"] == plan["memory"]["cut"]["bytes"] < 4e9
    assert plan["gflop_per_token"] == pytest.approx(
        (18 * BLOCK + 2 * 65_536 * 4096) / 1e9, rel=1e-3
    )

    small_budget = run_plan(capfd, *options_for(large, "--layers", "17", "--memory", "4GiB"))
    assert small_budget["mode"] == "streamed"  # blocks that cannot stay cached are read once

    every = run_plan(capfd, *options_for(large, "--layers", "all", "--memory", "8GiB"))
    layers = [file["bytes"] for file in every["files"] if file["name"].endswith(".sae.pt")]
    assert (len(layers), sum(layers)) == (36, 77_319_438_336)  # 77.3 GB
    assert every["layers"] == list(range(36))
    assert (every["fits"], every["mode"]) == (True, "streamed")


@pytest.mark.slow
def test_float32_is_converted_and_streamed(large: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    plan = run_plan(
        capfd, *options_for(large, "--layers", "17", "--dtype", "float32", "--memory", "8GiB")
    )
    assert (plan["mode"], plan["fits"]) == ("streamed", True)
    assert plan["memory"]["cut"]["anonymous"] > 2 * (EMBEDDING + 18 * BLOCK)
    small = run_plan(
        capfd, *options_for(large, "--layers", "17", "--dtype", "float32", "--memory", "4GiB")
    )
    assert not small["fits"]
    assert "memory" in small["why"][0]
    assert any("dtype auto" in line for line in small["instead"])


def test_suggested_memory_budget_fits(pair: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    plan = run_plan(capfd, *options_for(pair, "--layers", "1", "--memory", "100MB"))
    assert not plan["fits"]
    [why] = plan["why"]
    assert "100 MB allowed" in why
    suggested = run_plan(
        capfd,
        *options_for(pair, "--layers", "1", "--memory", plan["instead"][-1].rpartition(" ")[2]),
    )
    assert (suggested["fits"], suggested["why"], suggested["instead"]) == (True, [], [])


def test_json_has_files_tokens_and_work(
    pair: Pair, sets_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = run_plan(capfd, str(sets_folder), *options_for(pair))
    assert {"download_bytes", "disk_free_bytes", "memory_bytes", "fits", "files"} <= set(plan)
    assert all({"name", "bytes", "have"} <= set(file) for file in plan["files"])
    assert plan["layers"] == [1]  # the middle one
    letters = [line for file in sets_folder.iterdir() for line in file.read_text().splitlines()]
    assert plan["tokens"] == sum(len(line.encode()) // 4 for line in letters)
    assert plan["gflop"] == pytest.approx(plan["tokens"] * plan["gflop_per_token"])
    assert plan["compute_seconds"] is None
    assert run_plan(capfd, str(sets_folder), *options_for(pair, "--measure"))["compute_seconds"] > 0


@pytest.mark.slow
def test_plan_is_printed_as_tables(
    large: Pair, sets_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = [str(sets_folder), *options_for(large, "--layers", "all", "--memory", "1GB")]
    assert run(["plan", *asked]) == 1
    out = capfd.readouterr().out
    for words in (
        "layers 0-35",
        "(36)",
        "77.3 GB",
        "cut *",
        "bytes / 4",
        "does not fit",
        "instead: raise the memory budget to",
    ):
        assert words in out
    assert run(["plan", *options_for(large)]) == 0
    assert "It fits." in capfd.readouterr().out


@pytest.mark.parametrize("tied", [False, True])
def test_needed_tensors_are_those_the_engine_loads(tied: bool, tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model", tied=tied, shard_size="20KB")
    lm = load_lm(folder, [1])
    contents = Contents.open(open_files(str(folder)), torch.float32)
    loaded = {f"model.{name}": tensor for name, tensor in lm.model.state_dict().items()}
    needed = needed_parameters(contents, 1)
    assert needed.keys() == loaded.keys()
    assert set(needed.values()) == {None, 0, 1}
    sizes = ModelSizes(contents, 1, on_device=False)
    weights = sum(sizes.blocks(), sizes.embedding())
    assert weights == WeightBytes(mapped=sum(tensor.nbytes for tensor in loaded.values()))
    whole = sum(tensor.nbytes for tensor in dict(lm.whole.named_parameters()).values())
    assert weights.mapped + sizes.rest().mapped == whole


# --- what is refused


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    capfd.readouterr()
    code = run(arguments)
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    [line] = err.splitlines()
    assert line.startswith("saescope: ")
    return line


def test_invalid_options_are_refused_in_one_line(
    pair: Pair, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "8GiB, 500MB" in refused(capfd, "plan", *options_for(pair, "--memory", "lots"))
    assert "100Mbit/s" in refused(capfd, "plan", *options_for(pair, "--bandwidth", "fast"))
    assert "at least 1" in refused(capfd, "plan", *options_for(pair, "--batch-tokens", "0"))
    assert "no layer9.sae.pt" in refused(capfd, "plan", *options_for(pair, "--layers", "9"))
    assert "does not exist" in refused(capfd, "plan", str(tmp_path / "none"), *options_for(pair))
    (tmp_path / "manifest.json").write_text("{}")
    assert "needs no model" in refused(capfd, "plan", str(tmp_path), *options_for(pair))


def test_damaged_checkpoints_are_refused_in_one_line(
    pair: Pair, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(name: str, data: bytes) -> str:
        model = tmp_path / name.replace(".", "-")
        shutil.copytree(pair.model, model)
        if name.endswith("index.json"):
            (model / "model.safetensors").unlink()  # it would come before an index
        (model / name).write_bytes(data)
        return refused(capfd, "plan", "--model", str(model), "--sae", str(pair.sae))

    assert "is no model config" in broken("config.json", b"{")
    assert "damaged or truncated" in broken("model.safetensors", b"\xff" * 100)
    assert "not a safetensors index" in broken("model.safetensors.index.json", b"[]")


# --- without a network


def test_uncached_release_is_planned_from_the_catalog(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    plan = run_plan(
        capfd, "--sae", "qwen-scope-3-8b-base-w64k-l50", "--layers", "0,17", "--offline"
    )
    assert plan["model"] == "Qwen/Qwen3-8B-Base"
    assert [(f["name"], f["bytes"], f["have"]) for f in plan["files"]] == [
        ("layer0.sae.pt", 2_147_762_176, False),
        ("layer17.sae.pt", 2_147_762_176, False),
    ]
    assert plan["download_bytes"] == 2 * 2_147_762_176
    assert (plan["memory_bytes"], plan["fits"]) == (None, False)
    assert any("Qwen/Qwen3-8B-Base is not in the local cache" in line for line in plan["unknown"])
    assert any("without offline" in line for line in plan["instead"])
    assert "it has layers 0-35" in refused(
        capfd, "plan", "--sae", "qwen-scope-3-8b-base-w64k-l50", "--layers", "36", "--offline"
    )
    assert "not in the local cache" in refused(
        capfd, "plan", "--model", "a/b", "--sae", "a/c", "--offline"
    )
    assert "offline fetches nothing" in refused(
        capfd, "fetch", "--sae", "qwen-scope-3-8b-base-w64k-l50", "--offline"
    )
    assert not (tmp_path / "hub").exists()
