"""A wrong file or folder is named for what it is, and the line says what to do."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import Pair
from saescope.errors import SourceError
from saescope.sources import mistaken
from saescope.strict_json import from_json
from saescope.surfaces.cli import run

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 163815166\n"
Damage = Callable[[Path, Pair], list[str]]


def _changed(folder: Path, pair: Pair, name: str, text: str) -> Path:
    shutil.copytree(pair.model, folder / "changed")
    (folder / "changed" / name).write_text(text)
    return folder / "changed"


def _model(file: str, text: str, *options: str) -> Damage:
    def damage(folder: Path, pair: Pair) -> list[str]:
        model = _changed(folder, pair, file, text)
        return ["scan", "hi", "--model", str(model), "--sae", str(pair.sae), *options]

    return damage


def _layer_types(folder: Path, pair: Pair) -> list[str]:
    config = json.loads((pair.model / "config.json").read_text())
    config["layer_types"] = ["full_attention"] * 2
    return _model("config.json", json.dumps(config))(folder, pair)


def _adapter(folder: Path, pair: Pair) -> list[str]:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return ["scan", "hi", "--model", str(folder), "--sae", str(pair.sae)]


def _no_tokenizer(folder: Path, pair: Pair) -> list[str]:
    arguments = _model("tokenizer.json", "{}")(folder, pair)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "changed" / name).unlink()
    return arguments


def _pickled(folder: Path, pair: Pair) -> list[str]:
    arguments = _model("config.json", (pair.model / "config.json").read_text())(folder, pair)
    (folder / "changed" / "model.safetensors").unlink()
    torch.save({}, folder / "changed" / "pytorch_model.bin")
    return arguments


def _generation(text: str) -> Damage:
    def damage(folder: Path, pair: Pair) -> list[str]:
        model = _changed(folder, pair, "generation_config.json", text)
        return ["steer", "hi", "--edit", "1/1", "--model", str(model), "--sae", str(pair.sae)]

    return damage


def _zip(option: str) -> Damage:
    def damage(folder: Path, pair: Pair) -> list[str]:
        with zipfile.ZipFile(folder / "it.zip", "w") as archive:
            archive.write(pair.model / "config.json", "config.json")
        given = {"--model": str(pair.model), "--sae": str(pair.sae)} | {
            option: str(folder / "it.zip")
        }
        return ["scan", "hi", *(word for item in given.items() for word in item)]

    return damage


def _sae_twice(folder: Path, pair: Pair) -> list[str]:
    return ["scan", "hi", "--model", str(pair.sae), "--sae", str(pair.sae)]


def _model_twice(folder: Path, pair: Pair) -> list[str]:
    return ["scan", "hi", "--model", str(pair.model), "--sae", str(pair.model)]


def _sae_pointer(folder: Path, pair: Pair) -> list[str]:
    (folder / "layer1.sae.pt").write_text(POINTER)
    return ["scan", "hi", "--model", str(pair.model), "--sae", str(folder), "--k", "4"]


def _file(name: str, text: str, *command: str) -> Damage:
    def damage(folder: Path, pair: Pair) -> list[str]:
        (folder / name).write_text(text)
        given = [str(folder / name) if word == "FILE" else word for word in command]
        given = [str(folder) if word == "FOLDER" else word for word in given]
        return [*given, "--model", str(pair.model), "--sae", str(pair.sae)]

    return damage


POINTS = "is a git-lfs pointer, not the file itself: run git lfs pull in its folder"
STEER = ("steer", "hi", "--edits")
EVALUATE = ("evaluate", "--prompts", "requests", "--edit", "1/1")
MISTAKES: dict[str, tuple[Damage, str]] = {
    "adapter": (_adapter, "is an adapter, not a whole model"),
    "weights pointer": (_model("model.safetensors", POINTER), f"model.safetensors {POINTS}"),
    "config pointer": (_model("config.json", POINTER), f"config.json {POINTS}"),
    "tokenizer pointer": (_model("tokenizer.json", POINTER), f"tokenizer.json {POINTS}"),
    "SAE pointer": (_sae_pointer, f"layer1.sae.pt {POINTS}"),
    "layer types": (_layer_types, "(3) must be equal to the number of `layer_types` (2)"),
    "deep config": (_model("config.json", "[" * 10**5), "config.json is no model config"),
    "no tokenizer": (_no_tokenizer, "has no tokenizer files (tokenizer.json, …): copy them"),
    "pickled": (_pickled, "has pytorch_model.bin, which is pickled and may run code"),
    "generation config": (_generation("{"), "generation_config.json is no generation config"),
    "end token": (_generation('{"eos_token_id": "end"}'), "eos_token_id 'end' is no token id"),
    "model archive": (_zip("--model"), "it.zip is an archive: unpack it and give the folder"),
    "SAE archive": (_zip("--sae"), "it.zip is an archive: unpack it and give the folder"),
    "SAE as model": (_sae_twice, "holds SAEs, not a model: give it as --sae, and as --model what"),
    "model as SAE": (_model_twice, "is a model, not an SAE: give it as --model"),
    "edits pointer": (_file("e.toml", POINTER, *STEER, "FILE"), f"e.toml {POINTS}"),
    "edits folder": (_file("e", "", *STEER, "FOLDER"), "is a folder: give an edits file"),
    "deep edits": (_file("e.toml", "a=" + "[" * 10**5, *STEER, "FILE"), "nested too deeply"),
    "prompts pointer": (_file("p.jsonl", POINTER, "profile", "FILE"), f"p.jsonl {POINTS}"),
    "parquet pointer": (_file("p.parquet", POINTER, "profile", "FILE"), f"p.parquet {POINTS}"),
    "text pointer": (_file("p.txt", POINTER, "scan", "--file", "FILE"), f"p.txt {POINTS}"),
    "lines folder": (_file("p", "", "scan", "--file", "FOLDER"), "is a folder: give a text file"),
    "deep prompts": (
        _file("p.jsonl", '{"text": ' + "[" * 10**5, "profile", "FILE"),
        "p.jsonl:1: not JSON: it is nested too deeply",
    ),
    "key twice": (
        _file("p.jsonl", '{"text": "a", "text": "b"}', "profile", "FILE"),
        "p.jsonl:1: not JSON: the key 'text' occurs twice",
    ),
    "digits": (
        _file("p.jsonl", '{"text": "a", "id": ' + "9" * 5000 + "}", "profile", "FILE"),
        "p.jsonl:1: not JSON: a number in it has thousands of digits",
    ),
    "answers folder": (
        _file("a", "", *EVALUATE, "--answers", "FOLDER"),
        "is a folder: give a JSON",
    ),
    "deep answers": (
        _file("a.json", "[" * 10**5, *EVALUATE, "--answers", "FILE"),
        "nested too deeply",
    ),
    "address": (
        _file("a", "", "scan", "hi", "--model", "https:/huggingface.co/a/b", "--sae"),
        "is not an address of the hub: write https://huggingface.co/OWNER/NAME",
    ),
    "empty name": (_file("a", "", "profile", " "), "SETS"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_named_in_one_line(
    case: str,
    pair: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, work = tmp_path / "given", tmp_path / "work"
    folder.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    damage, reason = MISTAKES[case]
    arguments = damage(folder, pair)
    capfd.readouterr()
    if case == "address":
        arguments = [*arguments[:-4], arguments[-1]]
    code = run(arguments)
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    [line] = err.splitlines()
    assert line.startswith("saescope: ")
    assert reason in line
    assert "SAESCOPE_DEBUG" not in line  # these are no surprises
    assert not list(work.iterdir())


def test_packages_of_tokenizers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "You need to have sentencepiece or tiktoken installed to convert a slow tokenizer"
    monkeypatch.setattr(mistaken, "find_spec", lambda module: None)
    assert mistaken.missing_packages(reason) == (
        "reading it needs pip install sentencepiece tiktoken"
    )
    monkeypatch.setattr(mistaken, "find_spec", lambda module: object())
    assert mistaken.missing_packages(reason) is None
    assert mistaken.missing_packages("expected value at line 1") is None


def test_gguf_is_not_compared(
    pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert run(["diff", str(pair.model), str(tmp_path / "m.gguf")]) == 2
    assert "is a GGUF model, and only safetensors can be compared" in capfd.readouterr().err


@pytest.mark.parametrize("swapped", [False, True])
def test_sae_is_not_compared(
    swapped: bool, pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [str(pair.model), str(pair.sae)]
    assert run(["diff", *(given[::-1] if swapped else given)]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.endswith("holds SAEs, not a model: diff compares the weights of two models")
    assert mistaken.why_not_compared(["model.safetensors", "layer1.sae.pt"]) is None


def test_strict_json_reads_what_is_right() -> None:
    assert from_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    with pytest.raises(ValueError, match="Expecting value"):
        from_json("")


def test_pointer_in_a_folder_is_refused_by_python_too(tmp_path: Path) -> None:
    from saescope.sources.files import open_files

    (tmp_path / "config.json").write_text(POINTER)
    with pytest.raises(SourceError, match="git-lfs pointer"):
        open_files(str(tmp_path)).path("config.json")
