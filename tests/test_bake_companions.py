"""A baked folder holds all that the model's folder held, except weights without the edit."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

import tiny
from saescope.control.baking.bake import bake
from saescope.control.baking.companions import companion_names
from saescope.control.baking.settings import BakeSettings
from saescope.control.edits import Edit
from saescope.sources.directions import Direction
from saescope.sources.files import LocalFiles

EDIT = Edit(direction=Direction(1, np.arange(1.0, 33.0), "d"), op="project")
COMPANIONS = (
    "LICENSE-MODEL", "USE_POLICY.md", "tekken.json", "preprocessor_config.json", "tokenizer.model",
    "video_preprocessor_config.json", "vocab.txt", "sentencepiece.bpe.model", "figures/a/plot.png",
    "original/params.json", "configuration_own.py",
)  # fmt: skip
WEIGHTS = (
    "pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors", "model.gguf",
    "onnx/model.onnx", "onnx/model.onnx_data", "original/consolidated.00.pth", "tf_model.h5",
    "adapter_config.json", "adapter_model.safetensors", "checkpoint-50/config.json",
    "flax_model.msgpack", "training_args.bin", ".git/config", "openvino_model.xml",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with named chat templates, a card and many other files."""
    folder = tiny.save_model(tmp_path_factory.mktemp("companions") / "model")
    tok = tiny.tokenizer()
    tok.chat_template = {"default": "D", "tool_use": "T"}
    tok.save_pretrained(folder)
    assert (folder / "additional_chat_templates" / "tool_use.jinja").is_file()
    for name in (*COMPANIONS, *WEIGHTS):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{{}} {name}")
    (folder / "README.md").write_text("The card of the model.")
    return folder


def test_everything_but_other_weights_comes_along(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (model / "adapter_config.json").unlink(missing_ok=True)
    result = bake(model, (), [EDIT], out, BakeSettings(measure=False))
    for name in COMPANIONS:
        assert (out / name).read_text() == f"{{}} {name}"
    assert [name for name in WEIGHTS if (out / name).exists()] == []
    assert AutoTokenizer.from_pretrained(out, trust_remote_code=False).chat_template == {
        "default": "D",
        "tool_use": "T",
    }
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert set(result.files) == written
    assert (out / "README.base.md").read_text() == "The card of the model."
    assert "The card of the model." not in (out / "README.md").read_text()
    assert companion_names(LocalFiles(model)) == sorted(
        name.replace("README.base.md", "README.md")
        for name in written
        - {"config.json", "model.safetensors", "saescope_bake.json", "README.md"}
    )


def test_a_baked_folder_is_baked_again(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    (copy / "adapter_config.json").unlink(missing_ok=True)
    first = bake(copy, (), [EDIT], tmp_path / "one", BakeSettings(measure=False))
    second = bake(first.out, (), [EDIT], tmp_path / "two", BakeSettings(measure=False))
    assert second.files == first.files
    assert (tmp_path / "two" / "README.base.md").read_text() == (
        tmp_path / "one" / "README.md"
    ).read_text()
