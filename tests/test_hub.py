"""Models and SAEs from a hub: only needed files are fetched, once, and found offline."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny
from forked import run_forked
from hub_server import Hub, serving

MODEL, SAE = "tiny/model", "tiny/SAE-Res-Tiny-Base-W1K-L0_8"
SAELENS = "tiny/saes-by-saelens"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    tiny.save_model(folder / "model", shard_size="20KB")
    tiny.save_sae(folder / "sae", k=None)
    tiny.save_saelens(folder / "saelens")
    repos = {MODEL: folder / "model", SAE: folder / "sae", SAELENS: folder / "saelens"}
    repos["tiny2"] = folder / "model"
    with serving(Hub(repos, {"main": COMMIT, "v1": COMMIT})) as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def saescope(url: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    return run_forked(*arguments, env=env, cwd=home.parent)


def scan(
    url: str, home: Path, model: str, sae: str, *options: str
) -> subprocess.CompletedProcess[str]:
    return saescope(
        url, home, "scan", "hello there", "--model", model, "--sae", sae, "--json", *options
    )


def needed(hub: Hub, layer: int) -> set[str]:
    weights = json.loads((hub.repos[MODEL] / "model.safetensors.index.json").read_text())[
        "weight_map"
    ]
    prefixes = ["model.embed_tokens.", *(f"model.layers.{n}." for n in range(layer + 1))]
    shards = {shard for name, shard in weights.items() if name.startswith(tuple(prefixes))}
    assert len(shards) < len(set(weights.values()))
    tokenizer = {
        name for name in hub.files(MODEL) if name.startswith(("tokenizer", "special_tokens"))
    }
    model = {"config.json", "model.safetensors.index.json", *shards, *tokenizer}
    return {f"{MODEL}/{name}" for name in model} | {f"{SAE}/layer{layer}.sae.pt"}


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("saescope: ")
    for word in words:
        assert word in line


@pytest.mark.slow
def test_only_needed_files_are_fetched_once_and_then_offline(hub: Hub, home: Path) -> None:
    hub.downloaded.clear()
    first = scan(hub.url, home, f"{MODEL}@v1", SAE, "--layers", "1")
    assert first.returncode == 0, first.stderr
    assert sorted(hub.downloaded) == sorted(needed(hub, 1))
    local = scan("", home, str(hub.repos[MODEL]), str(hub.repos[SAE]), "--layers", "1", "--k", "8")
    assert json.loads(first.stdout) == json.loads(local.stdout)

    hub.downloaded.clear()
    second = scan(hub.url, home, f"{MODEL}@v1", SAE, "--layers", "1")
    assert (second.stdout, hub.downloaded) == (first.stdout, [])

    closed_url = "http://127.0.0.1:9"
    offline = scan(closed_url, home, f"{MODEL}@v1", SAE, "--layers", "1", "--offline")
    assert (offline.returncode, offline.stdout) == (0, first.stdout), offline.stderr
    assert_refused(
        scan(closed_url, home, f"{MODEL}@v1", SAE, "--layers", "2", "--offline"),
        SAE,
        "layer2.sae.pt",
    )
    assert_refused(
        scan(closed_url, home, f"{MODEL}@v2", SAE, "--offline"), MODEL, "v2", "without --offline"
    )
    assert_refused(scan(closed_url, home, f"{MODEL}@v1", SAE, "--layers", "1"), "cannot fetch", SAE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "sae", "words"),
    [
        (f"{MODEL}@v9", SAE, [MODEL, "no revision 'v9'"]),
        (MODEL, f"{SAE}@v9", [SAE, "no revision 'v9'"]),
        ("tiny/other", SAE, ["tiny/other", "no hub repository"]),
        (MODEL, "tiny/SAE-Res-Other-W1K-L0_8", ["tiny/SAE-Res-Other", "no hub repository"]),
    ],
    ids=["model revision", "sae revision", "model", "sae"],
)
def test_missing_repositories_are_refused_in_one_line(
    hub: Hub, home: Path, model: str, sae: str, words: list[str]
) -> None:
    assert_refused(scan(hub.url, home, model, sae), *words)


@pytest.mark.slow
def test_empty_cache_offline_is_refused_in_one_line(hub: Hub, home: Path) -> None:
    hub.downloaded.clear()
    assert_refused(scan(hub.url, home, MODEL, SAE, "--offline"), SAE, "without --offline")
    assert hub.downloaded == []


@pytest.mark.slow
def test_manifest_names_the_commit(hub: Hub, home: Path, sets_folder: Path) -> None:
    process = saescope(
        hub.url,
        home,
        "profile",
        str(sets_folder),
        "--model",
        f"{MODEL}@v1",
        "--sae",
        SAE,
        "--out",
        "run",
        "--json",
    )
    assert process.returncode == 0, process.stderr
    job = json.loads((home.parent / "run" / "manifest.json").read_text())["job"]
    assert (job["model"]["repo"], job["model"]["revision"]) == (MODEL, COMMIT)
    assert [(sae["revision"], sae["k"], sae["trained_on"]) for sae in job["saes"]] == [
        (COMMIT, 8, "Tiny-Base")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", ["", "@v1/blocks.1.hook_resid_post"])
def test_saes_in_folders_are_fetched_one_by_one(hub: Hub, home: Path, path: str) -> None:
    hub.downloaded.clear()
    layers = ("--layers", "1") if not path else ()
    online = scan(hub.url, home, MODEL, SAELENS + path, *layers)
    assert online.returncode == 0, online.stderr
    assert "Qwen" not in online.stderr
    folder = f"{SAELENS}/blocks.1.hook_resid_post"
    fetched = {name for name in hub.downloaded if name.startswith(SAELENS)}
    assert fetched == {f"{folder}/cfg.json", f"{folder}/sae_weights.safetensors"}
    planned = saescope(
        hub.url, home, "plan", "--model", MODEL, "--sae", SAELENS + path, *layers, "--json"
    )
    files = {
        file["name"]: file["have"]
        for file in json.loads(planned.stdout)["files"]
        if file["repo"] == SAELENS
    }
    assert files == dict.fromkeys((name.removeprefix(f"{SAELENS}/") for name in fetched), True)
    offline = scan(hub.url, home, MODEL, SAELENS + path, *layers, "--offline")
    assert offline.stdout == online.stdout


@pytest.mark.slow
def test_addresses_and_bare_names_mean_the_repository(hub: Hub, home: Path) -> None:
    plain = scan(hub.url, home, MODEL, SAELENS, "--layers", "1")
    assert plain.returncode == 0, plain.stderr
    page = f"{hub.url}/{SAELENS}/blob/v1/blocks.1.hook_resid_post/cfg.json?download=true"
    pasted = scan(hub.url, home, f"{hub.url}/{MODEL}/tree/main/", page)
    assert (pasted.returncode, pasted.stdout) == (0, plain.stdout), pasted.stderr
    bare = scan(hub.url, home, "tiny2", f"hf://{SAELENS}/", "--layers", "1")
    assert (bare.returncode, bare.stdout) == (0, plain.stdout), bare.stderr
