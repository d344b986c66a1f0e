"""A LoRA says for which class its names are, can be written for another, or without embedding."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import tiny
from saescope.control.edits import Edit
from saescope.control.exports.lora import export_lora
from saescope.control.exports.settings import ExportSettings
from saescope.errors import SourceError
from saescope.sources.directions import Direction
from saescope.sources.prompts import texts
from saescope.surfaces.cli import run as cli
from test_architectures import one_thread, save
from test_bake_architectures import save as save_kind

pytestmark = pytest.mark.slow

__all__ = ["one_thread"]
with warnings.catch_warnings(action="ignore"):
    from peft import PeftModel

VALUES = np.random.default_rng(2).normal(size=32)
UNIT = torch.from_numpy(VALUES / np.linalg.norm(VALUES)).float()
EDIT = Edit(direction=Direction(1, VALUES, "d"), op="project")
IDS = torch.tensor([[5, 17, 80, 3, 200, 41, 7, 7, 130, 99, 250, 12]])
WRITERS = ("o_proj.weight", "down_proj.weight", "out_proj.weight")


def causal(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    ).eval()


def multimodal(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    ).eval()


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=IDS, use_cache=False).logits
        return found


def projected(model: Any, *, embedding: bool = True) -> Tensor:
    """The logits with the direction taken out of every matrix that writes, by hand."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "visual" in name:
                continue
            if name.endswith(WRITERS):
                weight -= torch.outer(UNIT, UNIT @ weight)
            elif name.endswith("embed_tokens.weight") and embedding:
                weight -= torch.outer(weight @ UNIT, UNIT)
    return logits(model)


def adapted(opened: Callable[..., Any], model: Path, adapter: Path) -> Tensor:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(opened(model), adapter).eval()
    assert not [str(w.message) for w in caught if "missing" in str(w.message)]
    return logits(loaded)


@pytest.mark.parametrize(
    ("chosen", "opened", "name", "prefix"),
    [
        (None, causal, "Qwen3_5ForCausalLM", "base_model.model.model.layers."),
        (
            "multimodal",
            multimodal,
            "Qwen3_5ForConditionalGeneration",
            "base_model.model.model.language_model.layers.",
        ),
    ],
)
def test_names_are_those_of_the_class(
    chosen: Any, opened: Any, name: str, prefix: str, tmp_path: Path
) -> None:
    model = save("qwen3.5 with images", tmp_path / "model")
    settings = ExportSettings(measure=False, model_class=chosen)
    result = export_lora(model, (), [EDIT], tmp_path / "out", settings)
    assert result.measured["model_class"] == name
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["auto_mapping"]["base_model_class"] == name
    tensors = load_file(tmp_path / "out/adapter_model.safetensors")
    assert any(tensor.startswith(prefix) for tensor in tensors)
    assert not any("visual" in tensor for tensor in tensors)
    away = (adapted(opened, model, tmp_path / "out") - projected(opened(model))).abs().max()
    assert away < 1e-4 < 1e-2 < (logits(opened(model)) - projected(opened(model))).abs().max()


def test_a_class_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    settings = ExportSettings(measure=False, model_class="multimodal")
    with pytest.raises(SourceError, match="AutoModelForImageTextToText cannot load"):
        export_lora(model, (), [EDIT], tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_embedding_is_left_out_and_its_distance_stated(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    neutral = tuple(texts(tiny.TEXTS)[0].prompts)
    settings = ExportSettings(neutral=neutral, embedding=False)
    result = export_lora(model, (), [EDIT], tmp_path / "out", settings)
    tensors = load_file(tmp_path / "out/adapter_model.safetensors")
    assert tensors
    assert not any("embed" in name for name in tensors)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert "embed_tokens" not in config["target_modules"]
    assert not result.exact
    assert "what the embedding writes along the directions stays" in result.limits[0]
    out = adapted(causal, model, tmp_path / "out")
    kept = projected(causal(model), embedding=False)
    torch.testing.assert_close(out, kept, atol=2e-5, rtol=1e-4)
    cost, away = (result.measured[k]["mean"] for k in ("kl_complete_adapter", "kl_hook_adapter"))
    assert cost == pytest.approx(away, rel=1e-4)  # the complete adapter is the hook
    assert cost > 1e-4


def test_transposed_experts_are_adapted_too(tmp_path: Path) -> None:
    """gpt-oss holds (expert, in, out), here with equal sizes, and a bias per expert."""
    model = save_kind("gpt_oss", tmp_path / "model")
    neutral = tuple(texts(tiny.TEXTS)[0].prompts[:2])
    settings = ExportSettings(neutral=neutral)
    result = export_lora(model, (), [EDIT], tmp_path / "out", settings)
    assert "6 of them" in " ".join(result.limits)
    whole = causal(model)
    whole.set_experts_implementation("eager")
    with torch.no_grad():
        for block in whole.model.layers:
            down = block.mlp.experts.down_proj
            down -= (down @ UNIT)[..., None] * UNIT
    expected = projected(whole)
    out = adapted(causal, model, tmp_path / "out")
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-3)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, sae = tiny.save_model(tmp_path / "model"), tiny.save_sae(tmp_path / "sae")
    pair = ["--model", str(model), "--sae", str(sae), "--no-measure", "--no-embedding"]
    command = ["export", "--format", "lora", "--edit", "1/3 project", *pair]
    assert cli([*command, "--out", str(tmp_path / "a")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "for: Qwen3ForCausalLM, which AutoModelForCausalLM opens" in shown
    assert "what the embedding writes along the directions stays (not measured)" in shown
    assert cli([*command, "--out", str(tmp_path / "b"), "--model-class", "multimodal"]) == 2
    assert "AutoModelForImageTextToText cannot load" in capsys.readouterr().err
    gguf = ["export", "--format", "gguf", "--edit", "1/3 add 2", *pair]
    assert cli([*gguf, "--out", str(tmp_path / "c.gguf")]) == 2
    assert "format gguf has no model class and no embedding" in capsys.readouterr().err
