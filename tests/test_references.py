"""Names of models and SAEs as people write and paste them."""

import json
from pathlib import Path

import pytest

import tiny
from saescope.control.edits import EditSet
from saescope.errors import SourceError
from saescope.jobs.edits import inputs_for
from saescope.jobs.inputs import ModelInputs
from saescope.sources.files import HubFiles, open_files
from saescope.sources.references import name_in_catalog, parse_hub_ref, plain_ref
from saescope.sources.saes import open_sae

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SAME_AS = {
    "owner/name": "owner/name",
    "owner/name/": "owner/name",
    "gpt2": "gpt2",
    "gpt2@v1": "gpt2@v1",
    "owner/name@v1": "owner/name@v1",
    "owner/name@v1/": "owner/name@v1",
    "owner/name@v1/layer_5/width_16k/": "owner/name@v1/layer_5/width_16k",
    "owner/name@refs/pr/3": "owner/name@refs%2Fpr%2F3",
    "https://huggingface.co/owner/name": "owner/name",
    "https://huggingface.co/owner/name/": "owner/name",
    "http://www.huggingface.co/owner/name": "owner/name",
    "HTTPS://HuggingFace.co/owner/name#usage": "owner/name",
    " https://huggingface.co/owner/name?library=transformers ": "owner/name",
    "huggingface.co/owner/name": "owner/name",
    "hf.co/owner/name": "owner/name",
    "https://hf.co/gpt2": "gpt2",
    "https://hf-mirror.com/owner/name": "owner/name",
    "https://huggingface.co/gpt2/tree/main": "gpt2",
    "https://huggingface.co/models/owner/name": "owner/name",
    "https://huggingface.co/owner/name/tree/main": "owner/name",
    "https://huggingface.co/owner/name/tree/v1.0": "owner/name@v1.0",
    "https://huggingface.co/owner/name/tree/refs%2Fpr%2F3": "owner/name@refs%2Fpr%2F3",
    "https://huggingface.co/owner/name/tree/refs/pr/3/a": "owner/name@refs%2Fpr%2F3/a",
    f"https://huggingface.co/owner/name/commit/{COMMIT}": f"owner/name@{COMMIT}",
    "https://huggingface.co/owner/name/tree/main/layer_5/width_16k": "owner/name/layer_5/width_16k",
    "https://huggingface.co/owner/name/blob/main/layer_5/cfg.json": "owner/name/layer_5",
    "https://huggingface.co/owner/name/blob/main/config.json": "owner/name",
    "https://huggingface.co/owner/name/resolve/main/layer3.sae.pt?download=true": (
        "owner/name/layer3.sae.pt"
    ),
    "https://huggingface.co/owner/name/discussions/2": "owner/name",
    "hf://owner/name": "owner/name",
    "hf://owner/name@v1/layer_5": "owner/name@v1/layer_5",
    "hf://models/owner/name": "owner/name",
}


@pytest.mark.parametrize("text", SAME_AS)
def test_addresses_are_the_same_as_ids(text: str) -> None:
    plain = plain_ref(text)
    assert plain == SAME_AS[text]
    assert parse_hub_ref(plain) == parse_hub_ref(text)
    assert plain_ref(plain) == plain
    assert "@" not in name_in_catalog(text)


@pytest.mark.parametrize(
    "text",
    ["not a name", "-x/y", "x-/y", "a//b", "/a/b", "./a", "../a", "~/a", "a/..", "a/b--c", "", "/",
     "a@", "a/b@", "x" * 97, "a/b.git", "日本語", "C:\\models\\x", "a/b\n"],
)  # fmt: skip
def test_other_texts_are_no_names(text: str) -> None:
    assert parse_hub_ref(text) is None
    assert plain_ref(text) == text
    if not Path(text).is_dir():  # the working directory, the root
        with pytest.raises(SourceError, match="does not exist"):
            open_files(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://github.com/owner/name",
        "https://huggingface.co",
        "https://huggingface.co/datasets/owner/name",
        "https://huggingface.co/spaces/owner/name",
        "https://huggingface.co.evil.example/owner/name",
        "https://user@huggingface.co@x/owner/name",
        "hf://datasets/owner/name",
        "https://[::1/owner",
        "s3://bucket/name",
    ],
)
def test_other_addresses_are_refused_in_one_line(text: str) -> None:
    for open_it in (plain_ref, open_files, open_sae):
        with pytest.raises(SourceError, match="address") as caught:
            open_it(text)
        assert "\n" not in str(caught.value)


def test_models_are_whole_repositories() -> None:
    files = open_files("https://huggingface.co/owner/name/tree/refs%2Fpr%2F3")
    assert files == HubFiles("owner/name", "refs/pr/3", files.offline)
    assert open_files("owner/name@feature/x") == HubFiles("owner/name", "feature/x", files.offline)
    with pytest.raises(SourceError, match="a hub id such as owner/name"):
        open_files("https://huggingface.co/owner/name/tree/main/folder")


def test_the_endpoint_of_a_mirror_is_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example:8080")
    assert plain_ref("http://hub.example:8080/owner/name/tree/main") == "owner/name"
    monkeypatch.delenv("HF_ENDPOINT")
    with pytest.raises(SourceError):
        plain_ref("http://hub.example:8080/owner/name/tree/main")


def test_what_exists_here_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.save_saelens(tmp_path / "hf.co" / "owner" / "name", [1])
    for text in ("hf.co/owner/name", "hf.co/owner/name/"):
        assert plain_ref(text) == text
        assert open_sae(text).layers == (1,)
    assert open_sae("hf.co/owner/name/blocks.1.hook_resid_post").layers == (1,)


def test_requests_hold_plain_names() -> None:
    page = "https://huggingface.co/Qwen/Qwen3-8B-Base/tree/main"
    inputs = ModelInputs(model=page)
    assert inputs.names() == ("Qwen/Qwen3-8B-Base", "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50")
    sae = ModelInputs(sae="hf.co/Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_100/blob/v1/layer3.sae.pt")
    assert sae.names()[0] == "Qwen/Qwen3-8B-Base"
    edit_set = EditSet("Qwen/Qwen3-8B-Base", "", ())
    assert inputs_for(edit_set, inputs).model == "Qwen/Qwen3-8B-Base"


def test_pages_of_catalogued_saes_are_planned_offline(capsys: pytest.CaptureFixture[str]) -> None:
    from saescope.surfaces.cli import run as cli

    found = []
    repo = "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50"
    for ref in (repo, f"https://huggingface.co/{repo}/tree/main", f"{repo}/"):
        code = cli(["plan", "--sae", ref, "--layers", "3", "--offline", "--json"])
        output = capsys.readouterr()
        assert code in (0, 1), output.err  # 1: it would not fit this machine just now
        found.append(json.loads(output.out))
        assert found[-1]["sae"] == repo
        found[-1]["free_memory_bytes"] = found[-1]["free_disk_bytes"] = 0
    assert found[0]["files"] == found[1]["files"] == found[2]["files"]
