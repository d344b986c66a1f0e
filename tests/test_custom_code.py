"""No code from a folder runs, nobody is asked, and the refusal says what was wanted."""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import Pair
from saescope.engine.lm import load_lm
from saescope.errors import SourceError
from saescope.surfaces.cli import run
from unsafe_calls import unsafe_calls


@pytest.mark.parametrize(
    "line",
    [
        "AutoModel.from_pretrained(folder)",
        "AutoConfig.from_pretrained(folder, trust_remote_code=None)",
        "Qwen3ForCausalLM.from_pretrained(folder, trust_remote_code=True)",
        "build = AutoModelForCausalLM.from_config",
        "transformers.AutoProcessor.from_pretrained(folder)",
        "KINDS[name].model.from_pretrained(folder)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
    ],
)
def test_an_unsafe_call_is_found(line: str) -> None:
    assert list(unsafe_calls(line))


# --- what a user sees

MODEL_CLASSES = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
TOKENIZER = {"AutoTokenizer": ["own.OwnTokenizer", None]}


class Terminal(io.StringIO):
    """A terminal on which somebody answers every question with yes."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(params=["pipe", "terminal"])
def says_yes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = Terminal if request.param == "terminal" else io.StringIO
    monkeypatch.setattr(sys, "stdin", stdin("y\n" * 20))


def with_code(pair: Pair, folder: Path, **configs: dict[str, Any]) -> Path:
    """A copy of the pair's model with code that leaves a mark, and changed config files."""
    shutil.copytree(pair.model, folder)
    mark = folder / "ran"
    code = (
        f"open({str(mark)!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM\n"
        "class OwnConfig(Qwen3Config):\n    model_type = 'own'\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
        "class OwnModel(Qwen3ForCausalLM):\n    pass\n"
    )
    (folder / "own.py").write_text(code)
    for name, fields in configs.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


ASKED = {
    "scan": ["scan", "hello"],
    "steer": ["steer", "hello", "--edit", "1/3 scale -1", "--max-new-tokens", "2"],
}


@pytest.mark.parametrize("verb", ASKED)
@pytest.mark.usefixtures("says_yes")
def test_a_model_type_of_its_own_is_refused(
    pair: Pair, tmp_path: Path, verb: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = with_code(
        pair, tmp_path / "model", config={"model_type": "own", "auto_map": MODEL_CLASSES}
    )
    at = ["--model", str(folder), "--sae", str(pair.sae), "--layers", "1"]
    assert run([*ASKED[verb], *at]) == 2
    out, err = capfd.readouterr()
    assert len(err.splitlines()) == 1
    assert "config.json asks for custom code (auto_map: own.OwnConfig, own.OwnModel)" in err
    assert "never run" in err
    assert "[y/N]" not in out + err
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("form", ["by name", "older list"])
@pytest.mark.usefixtures("says_yes")
def test_a_tokenizer_of_its_own_is_refused(pair: Pair, tmp_path: Path, form: str) -> None:
    auto_map = TOKENIZER if form == "by name" else ["own.OwnTokenizer", None]
    folder = with_code(
        pair,
        tmp_path / "model",
        tokenizer_config={"tokenizer_class": "OwnTokenizer", "auto_map": auto_map},
    )
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SourceError) as caught:
        load_lm(folder, [1])
    message = str(caught.value)
    assert "tokenizer_config.json asks for custom code (auto_map: own.OwnTokenizer)" in message
    assert "[y/N]" not in message
    assert "\n" not in message
    assert not (folder / "ran").exists()


def test_a_refusal_is_one_line_whatever_else_is_odd(
    pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A config that knows only some of the tensors is worth a warning, but not beside an error."""
    folder = with_code(
        pair,
        tmp_path / "model",
        config={"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        tokenizer_config={"tokenizer_class": "OwnTokenizer", "auto_map": TOKENIZER},
    )
    (folder / "tokenizer.json").unlink()
    at = ["--model", str(folder), "--sae", str(pair.sae), "--layers", "1"]
    assert run([*ASKED["scan"], *at]) == 2
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1, err


@pytest.mark.usefixtures("says_yes")
def test_a_known_architecture_is_read_without_its_code(
    pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = with_code(
        pair,
        tmp_path / "model",
        config={"auto_map": {**MODEL_CLASSES, "AutoModel": "own.OwnModel"}},
        generation_config={"custom_generate": str(tmp_path / "model"), "trust_remote_code": True},
        tokenizer_config={"auto_map": TOKENIZER},
    )
    lm = load_lm(folder)
    assert type(lm.whole).__module__.startswith("transformers.")
    assert type(lm.tokenizer).__module__.startswith("transformers.")
    at = ["--model", str(folder), "--sae", str(pair.sae), "--layers", "1"]
    assert run([*ASKED["steer"], *at]) == 0
    assert "[y/N]" not in "".join(capfd.readouterr())
    assert not (folder / "ran").exists()
