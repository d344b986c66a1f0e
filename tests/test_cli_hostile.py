"""Bad input gets one clear line and exit code 2, and leaves nothing behind."""

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from conftest import Pair
from saescope.surfaces.cli import run

MAIN = [sys.executable, "-c", "from saescope.surfaces.cli import main; main()"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def of(pair: Pair, *options: str) -> list[str]:
    return ["--model", str(pair.model), "--sae", str(pair.sae), *options]


def assert_refused(
    arguments: Sequence[str], capfd: pytest.CaptureFixture[str], *words: str
) -> None:
    before = sorted(Path().rglob("*"))
    capfd.readouterr()
    code = run(arguments)
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    [line] = err.splitlines()
    assert line.startswith("saescope: ")
    for word in words:
        assert word in line
    assert sorted(Path().rglob("*")) == before


# --- damaged models and SAEs


def _no_layer(model: Path, sae: Path) -> str:
    (sae / "layer1.sae.pt").unlink()
    return "has no layer1.sae.pt; it has layers 0, 2"


def _too_wide(model: Path, sae: Path) -> str:
    tiny.save_sae(sae, d_model=48)
    return "48 wide"


def _not_finite(model: Path, sae: Path) -> str:
    state = tiny.sae_tensors()
    state["W_enc"][3, 3] = float("nan")
    torch.save(state, sae / "layer1.sae.pt")
    return "layer1.sae.pt: W_enc has values that are not finite"


def _sae_cut(model: Path, sae: Path) -> str:
    data = (sae / "layer1.sae.pt").read_bytes()
    (sae / "layer1.sae.pt").write_bytes(data[: len(data) // 2])
    return "layer1.sae.pt"


def _pickled_code(model: Path, sae: Path) -> str:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
            return os.mkdir, (str(sae / "was run"),)

    torch.save({**tiny.sae_tensors(), "trap": Trap()}, sae / "layer1.sae.pt")
    return "code in it was not run"


def _sae_empty(model: Path, sae: Path) -> str:
    (sae / "layer1.sae.pt").write_bytes(b"")
    return "layer1.sae.pt"


def _weights_cut(model: Path, sae: Path) -> str:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[: len(data) // 2])
    return "model.safetensors is damaged or truncated"


def _no_config(model: Path, sae: Path) -> str:
    (model / "config.json").unlink()
    return "has no file config.json"


def _weights_not_finite(model: Path, sae: Path) -> str:
    from safetensors.torch import load_file, save_file

    state = load_file(model / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight"][0, 0] = float("inf")
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    return "layer 1 is not finite"


def _tokenizer_damaged(model: Path, sae: Path) -> str:
    (model / "tokenizer.json").write_text("{")
    return "tokenizer"


DAMAGES = [
    _no_layer,
    _too_wide,
    _not_finite,
    _sae_cut,
    _pickled_code,
    _sae_empty,
    _weights_cut,
    _no_config,
    _weights_not_finite,
    _tokenizer_damaged,
]


@pytest.mark.parametrize("verb", ["scan", "contrast"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_damaged_checkpoint_is_refused_in_one_line(
    verb: str,
    damage: Callable[[Path, Path], str],
    tmp_path: Path,
    sets_folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model, sae = tiny.save_model(tmp_path / "model"), tiny.save_sae(tmp_path / "sae")
    reason = damage(model, sae)
    subject = ["hello there"] if verb == "scan" else [str(sets_folder)]
    assert_refused([verb, *subject, *of(Pair(model, sae)), "--layers", "1"], capfd, reason)
    assert not (sae / "was run").exists()


# --- prompt sets


def _folder(**sets: bytes) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        path.mkdir()
        for name, data in sets.items():
            (path / f"{name}.txt").write_bytes(data)
        return path

    return make


BAD_SETS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty set": (_folder(a=b"one\ntwo\n", b=b"\n"), "b.txt is empty"),
    "one set alone": (_folder(a=b"one\ntwo\n"), "has one set (a)"),
    "one-token prompts": (_folder(a=b"one two\nthree four\n", b=b"1\n2\n"), "'b'"),
    "bad encoding": (_folder(a=b"one\n", b=b"two\n\xff\n"), "b.txt:2: not UTF-8"),
    "too long": (
        _folder(a=b"one\n", b=b"z" * 500),
        "b:1 has 500 tokens, more than the model's maximum of 128",
    ),
    "no sets": (_folder(), "has no NAME.txt"),
    "nothing there": (lambda path: path, "does not exist"),
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_invalid_sets_are_refused_in_one_line(
    case: str, pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, reason = BAD_SETS[case]
    assert_refused(["contrast", str(make(tmp_path / "sets")), *of(pair)], capfd, reason)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["scan"], "nothing to scan"),
        (["scan", " "], "empty"),
        (["scan", "z" * 500], "500 tokens"),
        (["scan", "--file", "none.txt"], "none.txt does not exist"),
        (["scan", "bad \udce9 bytes"], "not UTF-8|surrogate"),
    ],
)
def test_invalid_prompts_are_refused_in_one_line(
    arguments: list[str], reason: str, pair: Pair, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_refused([*arguments, *of(pair)], capfd, reason.split("|")[-1])


# --- options

OPTIONS = [
    (["--layers", "middle"], "middle"),
    (["--layers", "1,"], "1,"),
    (["--layers", "7"], "it has layers 0-2"),
    (["--layers", "-1"], "-1"),
    (["--k", "0"], "--k must be at least 1, got 0"),
    (["--k", "many"], "many"),
    (["--k", "999"], "--k is 999, but"),
    (["--batch-tokens", "0"], "--batch-tokens must be at least 1"),
    (["--n-top", "0"], "--n-top must be at least 1, got 0"),
    (["--dtype", "int8"], "int8"),
    (["--device", "tpu"], "tpu"),
    (["--sink-ratio", "0"], "--sink-ratio must be greater than 1, got 0"),
    (["--sink-ratio", "nan"], "--sink-ratio must be greater than 1, got nan"),
    (["--model"], "--model"),
    (["--modle", "x"], "--modle"),
    (["--model", "no/such/place"], "no/such/place does not exist"),
    (["--sae", "no/such/place"], "no/such/place does not exist"),
]


@pytest.mark.parametrize("verb", ["scan", "contrast"])
@pytest.mark.parametrize(
    ("options", "reason"),
    OPTIONS,
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_option_is_refused_in_one_line(
    verb: str,
    options: list[str],
    reason: str,
    pair: Pair,
    sets_folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    inputs = {"--model": str(pair.model), "--sae": str(pair.sae)}
    input_options = [
        word for name, value in inputs.items() if name not in options for word in (name, value)
    ]
    assert_refused(
        [verb, str(sets_folder) if verb == "contrast" else "hi you", *input_options, *options],
        capfd,
        reason,
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--alpha", "1.5"], "--alpha must lie between 0 and 1, got 1.5"),
        (["--alpha", "nan"], "--alpha must lie between 0 and 1, got nan"),
        (["--shuffles", "-1"], "--shuffles must be 0 or more, got -1"),
        (["--seed", "x"], "x"),
    ],
)
def test_invalid_option_of_contrast_is_refused_in_one_line(
    options: list[str],
    reason: str,
    pair: Pair,
    sets_folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert_refused(["contrast", str(sets_folder), *of(pair), *options], capfd, reason)


def test_unknown_command_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert_refused(["scna", "hello"], capfd, "scna")


def test_device_that_is_not_there(pair: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert_refused(
        ["scan", "hi you", *of(pair, "--device", "cuda")], capfd, "--device cuda is not available"
    )


def test_out_that_is_no_run_is_refused(
    pair: Pair, sets_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("notes").mkdir()
    Path("notes/diary.txt").write_text("mine")
    Path("file").write_text("mine")
    for out in ("notes", "file", "file/run"):
        assert_refused(["contrast", str(sets_folder), *of(pair), "--out", out], capfd, out)
    assert Path("notes/diary.txt").read_text() == Path("file").read_text() == "mine"


def test_out_with_another_run_is_refused(
    pair: Pair, sets_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["profile", str(sets_folder), *of(pair), "--out", "run"]) == 0
    capfd.readouterr()
    assert_refused(
        ["profile", str(sets_folder), *of(pair, "--layers", "0"), "--out", "run"],
        capfd,
        "another job's run",
    )


# --- saescope.toml


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("modle = 'x'", "modle"),
        ("k = 'many'", "many"),
        ("k = ", "saescope.toml"),
        ("k = 0", "--k must be at least 1, got 0"),
    ],
)
def test_invalid_configuration_is_refused_in_one_line(
    text: str, word: str, pair: Pair, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("saescope.toml").write_text(text)
    assert_refused(["scan", "hi you", *of(pair)], capfd, word)


def test_configuration_gives_defaults_and_flags_override_it(
    pair: Pair, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("saescope.toml").write_text(
        f"model = '{pair.model}'\nsae = '{pair.sae}'\nlayers = '0,2'\nn_top = 2\n"
    )
    assert run(["scan", "hi you", "--json"]) == 0
    token = json.loads(capfd.readouterr().out)["prompts"][0]["tokens"][1]
    assert {layer: len(top) for layer, top in token["features"].items()} == {"0": 2, "2": 2}
    assert run(["scan", "hi you", "--json", "--layers", "1", "--n-top", "3"]) == 0
    token = json.loads(capfd.readouterr().out)["prompts"][0]["tokens"][1]
    assert {layer: len(top) for layer, top in token["features"].items()} == {"1": 3}


def test_configuration_may_hold_options_of_other_commands(
    pair: Pair, sets_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("saescope.toml").write_text(f"model = '{pair.model}'\nsae = '{pair.sae}'\nn_top = 2\n")
    assert run(["profile", str(sets_folder), "--json"]) == 0, capfd.readouterr().err


# --- JSON


def test_json_has_the_keys_of_the_contract(
    pair: Pair, sets_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def ask(*arguments: str) -> dict[str, object]:
        capfd.readouterr()
        assert run([*arguments, *of(pair, "--layers", "0,2", "--json")]) == 0
        result: dict[str, object] = json.loads(capfd.readouterr().out)
        return result

    token = ask("scan", "hi you\nthere")["prompts"][0]["tokens"][0]
    assert token.keys() >= {"pos", "id", "token", "sink", "norm", "features"}
    assert token["features"]["2"][0].keys() == {"feature", "act"}
    assert token["features"]["2"][0]["feature"].startswith("2/")
    result = ask("contrast", str(sets_folder), "--shuffles", "1")
    assert Path(result["run"]).is_dir()
    assert result["masked"].keys() == {"pos0", "sinks"}
    red = result["layers"]["0"]["sets"]["red"]
    assert red.keys() >= {"tokens", "prompts", "features"}
    expected = (
        "feature rate other_rate other_set score prompt_rate prompt_other_rate ci p q confirmed "
        "holdout_score mean_act"
    )
    assert red["features"][0].keys() >= set(expected.split())
    profiled = ask("profile", str(sets_folder))
    assert profiled.keys() >= {"sets", "warnings"}
    assert profiled["sets"]["red"].keys() >= {
        "prompts",
        "tokens",
        "tokens_per_prompt",
        "ratio",
        "layers",
    }
    assert profiled["sets"]["red"]["layers"]["2"].keys() >= {
        "pos0_norm_mean",
        "pos0_norm_median",
        "later_norm_mean",
        "sinks",
    }
    assert len(list(Path("runs").iterdir())) == 1  # profile asked the run that contrast had made


# --- the machine


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["contrast", "--help"], ["--version"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    code = (
        f"import sys; from saescope.surfaces.cli import run; run({arguments}); "
        "sys.exit('torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout


@pytest.mark.slow
def test_full_disk(pair: Pair, sets_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["profile", str(sets_folder), *of(pair, "--batch-tokens", "60"), "--out", "run"]

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        # Batches fit, the tables of the run do not.
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    process = subprocess.run(
        [*MAIN, *command], capture_output=True, text=True, preexec_fn=small_disk
    )
    assert (process.returncode, process.stdout) == (2, "")
    [line] = process.stderr.splitlines()
    assert line.startswith("saescope: cannot write the run run: ")
    assert "File too large" in line
    assert not Path("run").exists()
    assert run([*command, "--json"]) == 0
    resumed = json.loads(capfd.readouterr().out)
    assert run([*command[:-1], "other", "--json"]) == 0
    assert {**json.loads(capfd.readouterr().out), "run": "run"} == resumed
    assert sorted(p.name for p in Path().iterdir()) == ["other", "run"]


def test_interrupt_says_what_is_left(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saescope.engine.scan.compute_features", interrupted)
    assert run(["scan", "hello", *of(pair)]) == 130
    [line] = capfd.readouterr().err.splitlines()[-1:]
    again = shlex.join(["saescope", "scan", "hello", *of(pair)])
    assert line == f"saescope: interrupted; nothing was written; to start again: {again}"
    monkeypatch.setattr("saescope.engine.extract.compute_features", interrupted)
    Path("a.jsonl").write_text('{"set": "a", "text": "hello there"}\n')
    assert run(["profile", "a.jsonl", *of(pair)]) == 130
    again = shlex.join(["saescope", "profile", "a.jsonl", *of(pair)])
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == f"saescope: interrupted; nothing is finished yet; to go on: {again}"


@pytest.mark.slow
def test_interrupted_process_keeps_finished_batches(pair: Pair, tmp_path: Path) -> None:
    sets = tmp_path / "many"
    sets.mkdir()
    for name in ("a", "b"):
        (sets / f"{name}.txt").write_text(
            "\n".join(f"{name} prompt {n} of many" for n in range(40))
        )
    command = [*MAIN, "profile", str(sets), *of(pair, "--batch-tokens", "1"), "--out", "run"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(Path().glob(".run.partial/layer*-batch00000[5-9].npz")):
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert (started.returncode, out) == (130, "")
    assert err.splitlines()[-1].startswith("saescope: interrupted")
    assert "Traceback" not in err
    assert not Path("run").exists()
    n_batches = len(list(Path(".run.partial").glob("layer*-batch*.npz")))
    assert 5 < n_batches < 80
    assert run(command[len(MAIN) :]) == 0
    assert run([*command[len(MAIN) : -1], "whole"]) == 0
    tables = [
        json.loads(Path(name, "manifest.json").read_text())["tables"] for name in ("run", "whole")
    ]
    assert tables[0] == tables[1]
    assert sorted(p.name for p in Path().iterdir()) == ["run", "whole"]


@pytest.mark.slow
def test_reader_that_stops_reading_is_no_error(pair: Pair) -> None:
    command = [*MAIN, "scan", *tiny.TEXTS * 20, *of(pair, "--layers", "all", "--n-top", "8")]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stderr is not None
    started.stdout.readline()
    started.stdout.close()
    assert started.stderr.read() == ""
    started.stderr.close()
    assert started.wait(60) == 141


# --- questions that have no answer

QUESTIONS = [
    (["detect", "SETS", "--target", "none"], "no set 'none': the sets are blue, green, red"),
    (["detect", "SETS", "--target", "red", "--against", "red"], "no other set to compare"),
    (
        ["detect", "SETS", "--target", "red", "--min-rate", "1.5"],
        "--min-rate must lie between 0 and 1",
    ),
    (["detect", "SETS", "--target", "red", "--transfer", ":green"], "names no set"),
    (["detect", "SETS"], "--target"),
    (["layers", "SETS", "--feature", "here"], "'here' is not LAYER/ID"),
    (["precision", "SETS", "--against", "float16"], "float16"),
    (["fitness", "SETS", "--base", "no/such/model"], "no/such/model does not exist"),
    (["verify", "no-such-run"], "is not a run"),
    (["rerun", "no-such-run"], "is not a run"),
    (["report", "no-such-run"], "is not a run"),
]


@pytest.mark.parametrize(
    ("arguments", "reason"), QUESTIONS, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_unanswerable_question_is_refused_in_one_line(
    arguments: list[str],
    reason: str,
    pair: Pair,
    sets_folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What can be known before computing is refused before computing, and leaves nothing behind."""
    on_runs = arguments[0] in ("verify", "rerun", "report")
    words = [str(sets_folder) if word == "SETS" else word for word in arguments]
    assert_refused([*words, *([] if on_runs else of(pair))], capfd, reason)


def test_unfitting_feature_is_refused_after_computing_once(
    pair: Pair, sets_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["layers", str(sets_folder), *of(pair), "--out", "run"]) == 0
    assert_refused(["layers", "run", "--feature", "9/1"], capfd, "run holds layers 0, 1, 2, not 9")
    assert_refused(
        ["layers", "run", "--feature", "1/999"], capfd, "layer 1 has no feature 999 (ids are 0-255)"
    )
    assert_refused(["fitness", "run"], capfd, "keeps no reconstruction errors")
    assert_refused(["precision", "run", "sets"], capfd, "sets is not a run")
