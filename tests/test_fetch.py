"""Plans and downloads from a hub: only needed files, checked, and interrupted ones resumed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import shapes
import tiny
from benchmarks.shapes import SHAPES
from hub_server import Hub, serving
from saescope.engine import plan as plan_module
from saescope.engine.plan import plan_job
from saescope.sources.fetch import fetch
from saescope.sources.job_plan import JobOptions, JobPlan
from saescope.surfaces.cli import run
from test_hub import COMMIT, MODEL, SAE, needed, saescope, scan

pytestmark = pytest.mark.slow

LAYER = "layer1.sae.pt"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    tiny.save_model(tmp_path / "model", shard_size="20KB", dtype=torch.bfloat16)
    tiny.save_sae(tmp_path / "sae", k=None)
    with serving(
        Hub({MODEL: tmp_path / "model", SAE: tmp_path / "sae"}, {"main": COMMIT, "v1": COMMIT})
    ) as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def here(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process asks the hub of the test and keeps files in a cache of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return home


def options(*arguments: str) -> list[str]:
    return ["--model", MODEL, "--sae", SAE, "--layers", "1", "--device", "cpu", *arguments]


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def blobs(home: Path) -> set[str]:
    return {path.name for path in home.glob("hub/models--*/blobs/*")}


def test_plan_fetches_no_weights_and_fetch_just_what_it_names(hub: Hub, home: Path) -> None:
    plan = answer(saescope(hub.url, home, "plan", *options("--json")))
    files = {f"{file['repo']}/{file['name']}": file for file in plan["files"]}
    assert set(files) == needed(hub, 1)
    weights = {name for name in files if name.endswith((".safetensors", ".pt"))}
    assert {Path(name).name for name in weights} & set(hub.sent) == {
        Path(n).name for n in weights if "model-" in n
    }
    assert all(first == 0 and n <= 100_001 for ranges in hub.sent.values() for first, n in ranges)
    assert {name for name, file in files.items() if file["have"]} == {
        f"{MODEL}/config.json",
        f"{MODEL}/model.safetensors.index.json",
    }
    sizes = {
        name: (hub.repos[name.rpartition("/")[0]] / file["name"]).stat().st_size
        for name, file in files.items()
    }
    assert {name: file["bytes"] for name, file in files.items()} == sizes
    assert plan["download_bytes"] == sum(
        size for name, size in sizes.items() if not files[name]["have"]
    )
    assert (plan["fits"], plan["dtype"]) == (True, "bfloat16")

    fetched = answer(saescope(hub.url, home, "fetch", *options("--json")))
    assert all(file["have"] for file in fetched["files"])
    assert (fetched["download_bytes"], fetched["disk_bytes"]) == (0, plan["disk_bytes"])
    assert not any(name.endswith(".incomplete") for name in blobs(home))

    hub.downloaded.clear()
    second_fetch = saescope(hub.url, home, "fetch", *options())
    assert (second_fetch.returncode, hub.downloaded) == (0, [])
    assert "are here and whole" in second_fetch.stdout
    offline = scan("http://127.0.0.1:9", home, MODEL, SAE, "--layers", "1", "--offline")
    assert offline.returncode == 0, offline.stderr


def test_true_sizes_from_a_hub(tmp_path: Path, home: Path) -> None:
    model, sae = "Qwen/Qwen3-8B-Base", "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50"
    shapes.save(SHAPES["qwen3-8b"], tmp_path / "large", tmp_path / "large-sae", range(36))
    with serving(
        Hub({model: tmp_path / "large", sae: tmp_path / "large-sae"}, {"main": COMMIT})
    ) as hub:
        plan = answer(
            saescope(
                hub.url,
                home,
                "plan",
                "--model",
                model,
                "--layers",
                "17",
                "--memory",
                "8GiB",
                "--json",
            )
        )
    assert [file["bytes"] for file in plan["files"] if file["repo"] == sae] == [2_147_762_176]
    assert plan["download_bytes"] == pytest.approx(14.1e9, rel=0.01)
    assert plan["download_seconds"] == pytest.approx(plan["download_bytes"] * 8 / 100e6)
    assert sum(n for ranges in hub.sent.values() for _, n in ranges) < 10**6


def test_dropped_connection_is_resumed(
    hub: Hub, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    size = (hub.repos[SAE] / LAYER).stat().st_size
    hub.drop_after[LAYER] = size // 3
    assert run(["fetch", *options("--json")]) == 0
    [whole, (first, rest)] = hub.sent[LAYER]
    assert (whole, first + rest) == ((0, size), size)
    assert 0 < first <= size // 3
    assert all(file["have"] for file in json.loads(capfd.readouterr().out)["files"])


def test_interrupted_fetch_is_resumed_by_the_next(hub: Hub, home: Path) -> None:
    size = 30_000_000  # several of the 10 MB that are written at once
    shapes.sparse(hub.repos[SAE] / LAYER, b"", size)
    hub.stop_after[LAYER] = 25_000_000
    env = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    env["NO_PROXY"] = "127.0.0.1"
    command = ["-c", "from saescope.surfaces.cli import main; main()", "fetch", *options()]
    process = subprocess.Popen(
        [sys.executable, *command], env=env, stderr=subprocess.PIPE, text=True
    )
    wait_for(
        lambda: any(
            path.stat().st_size > 0
            for path in home.glob(f"hub/models--{SAE.replace('/', '--')}/blobs/*.incomplete")
        )
    )
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err.splitlines()[-1]
    del hub.stop_after[LAYER]

    plan = answer(saescope(hub.url, home, "plan", *options("--json")))
    [layer] = [file for file in plan["files"] if file["name"] == LAYER]
    assert 0 < layer["partial_bytes"] <= 25_000_000
    assert plan["download_bytes"] == size - layer["partial_bytes"]
    hub.sent.clear()
    fetched = answer(saescope(hub.url, home, "fetch", *options("--json")))
    assert hub.sent == {LAYER: [(layer["partial_bytes"], size - layer["partial_bytes"])]}
    assert all(file["have"] for file in fetched["files"])
    [blob] = home.glob(f"hub/models--tiny--SAE*/snapshots/*/{LAYER}")
    assert hashlib.sha256(blob.read_bytes()).hexdigest() == layer["sha256"]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_damaged_download_is_removed(
    hub: Hub, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.damaged.add(LAYER)
    assert run(["fetch", *options()]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    for words in (LAYER, "damaged", "SHA-256", "removed"):
        assert words in line
    assert not any(path.name == LAYER for path in here.rglob("*"))
    assert hub.etag(hub.repos[SAE] / LAYER) not in blobs(here)
    assert not any(name.endswith(".incomplete") for name in blobs(here))
    hub.damaged.clear()
    assert run(["fetch", *options()]) == 0


def test_torn_part_of_a_download_is_fetched_anew(hub: Hub, here: Path) -> None:
    assert run(["fetch", *options()]) == 0
    blob = here.resolve() / "hub" / f"models--{SAE.replace('/', '--')}" / "blobs"
    whole = blob / hub.etag(hub.repos[SAE] / LAYER)
    content = whole.read_bytes()
    for path in here.rglob(LAYER):
        path.unlink()
    whole.unlink()
    whole.with_name(f"{whole.name}.incomplete").write_bytes(bytes(len(content) // 2))
    assert run(["fetch", *options()]) == 0
    assert whole.read_bytes() == content


def test_file_without_its_name_gets_it(
    hub: Hub, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A process may be killed when a file is complete and its revision does not show it yet."""
    assert run(["fetch", *options()]) == 0
    for path in here.rglob(LAYER):
        path.unlink()
    hub.downloaded.clear()
    assert run(["fetch", *options()]) == 0
    assert hub.downloaded == []
    assert run(["fetch", "--offline", *options()]) == 0, capfd.readouterr().err


def test_damaged_cached_file_is_fetched_again(
    hub: Hub, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["fetch", *options()]) == 0
    [path] = here.rglob(f"snapshots/*/{LAYER}")
    whole = path.read_bytes()
    path.resolve().write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert run(["fetch", *options()]) == 0  # its size is right
    capfd.readouterr()
    assert run(["fetch", *options("--check")]) == 2
    assert "damaged" in capfd.readouterr().err.splitlines()[-1]

    assert run(["fetch", *options()]) == 0
    [path] = here.rglob(f"snapshots/*/{LAYER}")
    path.resolve().write_bytes(whole[:100])
    hub.downloaded.clear()
    assert run(["fetch", *options()]) == 0
    assert hub.downloaded == [f"{SAE}/{LAYER}"]
    assert path.read_bytes() == whole


def test_full_disk_is_refused_before_anything_is_fetched(
    hub: Hub, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = (hub.repos[SAE] / LAYER).stat().st_size
    before = _plan(layers="all")
    model = sum(file.entry.missing for file in before.needed if file.repo == MODEL)
    monkeypatch.setattr(plan_module, "free_disk", lambda _: model + 2 * layer + 1)
    hub.downloaded.clear()
    assert run(["fetch", *options()[:4], "--layers", "all"]) == 2
    out, err = capfd.readouterr()
    [line] = err.splitlines()
    for words in ("to fetch", "free at", "at most 2 of the 3 layers", "HF_HOME"):
        assert words in line
    assert out == ""
    assert not any(name.endswith(".pt") for name in hub.downloaded)
    assert _plan(layers=[0, 1]).fits
    monkeypatch.setattr(plan_module, "free_disk", lambda _: 0)
    assert run(["plan", *options("--json")]) == 1
    assert json.loads(capfd.readouterr().out)["fits"] is False


def _plan(**changes: Any) -> JobPlan:
    return plan_job(JobOptions(MODEL, SAE, **changes))


def test_full_disk_suggests_a_lower_layer(
    hub: Hub, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower, upper = _plan(layers=[0]), _plan(layers=[2])
    assert lower.download_bytes < upper.download_bytes
    monkeypatch.setattr(plan_module, "free_disk", lambda _: lower.download_bytes)
    assert "ask for one layer up to 0" in _plan(layers=[2]).instead[0]


def test_files_of_another_revision_are_not_fetched_again(hub: Hub, here: Path) -> None:
    fetch(_plan(layers=[1]), report=lambda _: None)
    hub.revisions = {**hub.revisions, "v2": "f" * 40}
    hub.downloaded.clear()
    newer = plan_job(JobOptions(f"{MODEL}@v2", f"{SAE}@v2", [1]))
    assert newer.download_bytes == 0
    assert all(file.files and file.files.revision == "f" * 40 for file in newer.needed)
    fetch(newer, report=lambda _: None)
    assert not any(
        name.endswith((".safetensors", ".pt")) and "Range" not in name for name in hub.downloaded
    )


def test_model_and_sae_of_other_widths_are_refused(
    hub: Hub, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sae = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
    hub.repos = {**hub.repos, sae: hub.repos[SAE]}
    assert run(["plan", "--model", MODEL, "--sae", sae, "--layers", "1"]) == 2
    assert "reads residuals 2048 wide, the model has 32" in capfd.readouterr().err


def test_single_file_is_planned_from_its_header(hub: Hub, here: Path, tmp_path: Path) -> None:
    hub.repos = {**hub.repos, MODEL: tiny.save_model(tmp_path / "single")}
    plan = _plan(layers=[0])
    assert plan.sizes is not None
    size = (hub.repos[MODEL] / "model.safetensors").stat().st_size
    assert plan.disk_bytes > size > plan.sizes.loaded.total
    assert plan.sizes.rest.total > 0
    assert not any(path.name == "model.safetensors" for path in here.rglob("*"))


def test_offline_plan_names_what_is_not_cached(
    hub: Hub, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fetch(_plan(layers=[0]), report=lambda _: None)
    plan = plan_job(JobOptions(MODEL, SAE, [0], offline=True))
    assert (plan.fits, plan.download_bytes) == (True, 0)
    assert run(["plan", "--model", MODEL, "--sae", SAE, "--layers", "2", "--offline"]) == 2
    assert "layer2.sae.pt" in capfd.readouterr().err
    for path in here.rglob("model-00001*"):
        path.unlink()
    offline_plan = plan_job(JobOptions(MODEL, SAE, [0], offline=True))
    assert (offline_plan.fits, offline_plan.memory_bytes) == (False, None)
    assert len(offline_plan.missing) == 1
    assert "shard is not in the local cache" in offline_plan.unknown[0]
