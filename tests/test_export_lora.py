"""In peft the adapter is the projection at every write; switched off, the base bit for bit."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import tiny
from saescope.control.edits import Edit
from saescope.control.exports.lora import export_lora
from saescope.control.exports.settings import ExportSettings
from saescope.engine.anatomy import read_anatomy
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae
from saescope.errors import EditError, ResourceError
from saescope.sources.directions import Direction
from saescope.sources.files import LocalFiles
from saescope.sources.prompts import texts
from test_architectures import KINDS, _one_by_one, _rename, _together, one_thread, save

__all__ = ["one_thread"]
with warnings.catch_warnings(action="ignore"):
    from peft import PeftModel

NORMED = ("gemma2", "gemma3", "gemma3 with images")
BIASED = ("gpt2", "phi")
NEUTRAL = texts(tiny.TEXTS)[0].prompts
MEASURED, UNMEASURED = ExportSettings(neutral=NEUTRAL), ExportSettings(measure=False)
EDITS = [Edit("1/3", "project", 1.0), Edit("1/9", "project", 1.0)]
IDS = torch.tensor([[5, 17, 80, 3, 200, 41, 7, 7, 130, 99, 250, 12]])


@pytest.fixture(scope="module")
def saes(tmp_path_factory: pytest.TempPathFactory) -> list[Sae]:
    return [load_sae(tiny.save_sae(tmp_path_factory.mktemp("sae"), [1]), 1)]


@dataclass(frozen=True)
class Loaded:
    """A base model with its adapter in peft."""

    model: Any

    def logits(self) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = self.model(input_ids=IDS, use_cache=False).logits
            return logits

    def off(self) -> Tensor:
        with self.model.disable_adapter():
            return self.logits()


def in_peft(model: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> Loaded:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(model, dtype=dtype, trust_remote_code=False),
            adapter,
        )
    assert not [
        str(w.message)
        for w in caught
        if "missing" in str(w.message) or "unexpected" in str(w.message)
    ]
    return Loaded(loaded.eval())


def base(model: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype, trust_remote_code=False).eval()


def projected(model: Path, edits: Sequence[Edit], saes: Sequence[Sae]) -> Tensor:
    """The base model's logits with every write projected by hooks, independent of saescope."""
    whole = base(model)
    assert saes[0].W_dec is not None
    Q = torch.linalg.qr(
        torch.stack([saes[0].W_dec[:, e.target_feature.id] for e in edits], dim=1).double()
    ).Q
    share = edits[0].amount

    def project(_module: Any, _inputs: Any, output: Any) -> Any:
        y = output[0] if isinstance(output, tuple) else output
        y = (y.double() - share * (y.double() @ Q) @ Q.T).float()
        return (y, *output[1:]) if isinstance(output, tuple) else y

    anatomy = read_anatomy(LocalFiles(model))
    modules = dict(whole.named_modules())
    sites = [site for _, site in anatomy.sites] + [
        w.name.removesuffix(".weight") for w in anatomy.writes if w.layer < 0
    ]
    for site in sites:
        [module] = [
            m for name, m in modules.items() if name.endswith(f".{site}") and "vision" not in name
        ]
        module.register_forward_hook(project)
    with torch.inference_mode():
        logits: Tensor = whole(input_ids=IDS, use_cache=False).logits
        return logits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share"),
    [*((name, 1.0) for name in KINDS), *((name, 0.4) for name in ("qwen3", "qwen3 moe", "gemma3"))],
)
def test_enabled_adapter_projects_and_disabled_is_the_base(
    name: str, share: float, saes: list[Sae], tmp_path: Path
) -> None:
    model = save(name, tmp_path / "model")
    edits = [Edit(edit.target_feature, "project", share) for edit in EDITS]
    result = export_lora(model, saes, edits, tmp_path / "out", ExportSettings(neutral=NEUTRAL[:3]))
    assert result.exact == (name not in (*NORMED, *BIASED))
    assert {path.name for path in result.files} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    peft = in_peft(model, tmp_path / "out")
    plain = base(model)(input_ids=IDS, use_cache=False).logits
    on = peft.logits()
    assert torch.equal(peft.off(), plain)
    expected = projected(model, edits, saes)
    assert (expected - plain).abs().max() > 0.02
    largest_kl = {k: v["largest"] for k, v in result.measured.items() if k.startswith("kl_")}
    if name in NORMED:
        assert (on - expected).abs().max() < 0.7 * (on - plain).abs().max()
    else:
        torch.testing.assert_close(on, expected, atol=2e-5, rtol=1e-4)
        assert largest_kl["kl_hook_adapter"] < 1e-6
    assert largest_kl["kl_base_adapter"] > 1e-4
    assert result.measured["component_left"]["float32"] == pytest.approx(
        1 - share, abs=0.35 if share < 1 else 1e-5
    )


@pytest.mark.slow
def test_bfloat16_reports_what_rounding_leaves(saes: list[Sae], tmp_path: Path) -> None:
    model = save("llama", tmp_path / "model", dtype=torch.bfloat16)
    result = export_lora(model, saes, EDITS, tmp_path / "out", MEASURED)
    left = result.measured["component_left"]
    assert left["float32"] < 1e-5 < left["bfloat16"] < 0.1
    peft = in_peft(model, tmp_path / "out", torch.bfloat16)
    plain = base(model, torch.bfloat16)(input_ids=IDS, use_cache=False).logits
    assert torch.equal(peft.off(), plain)
    assert (peft.logits() - plain).abs().max() > 0.02


def test_tied_lm_head_is_left_alone(saes: list[Sae], tmp_path: Path) -> None:
    model = save("qwen3", tmp_path / "model", tie_word_embeddings=True)
    export_lora(model, saes, EDITS, tmp_path / "out", UNMEASURED)
    peft = in_peft(model, tmp_path / "out")
    torch.testing.assert_close(peft.logits(), projected(model, EDITS, saes), atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_experts_stored_one_by_one_are_the_same(saes: list[Sae], tmp_path: Path) -> None:
    adapters = []
    for way in (_one_by_one, lambda state: state):
        folder = tmp_path / str(len(adapters))
        model = _rename(
            save("qwen3 moe", folder / "model", shard_size="1GB"),
            lambda s, way=way: way(_together(s)),
        )
        export_lora(model, saes, EDITS, folder / "out", UNMEASURED)
        adapters.append(load_file(folder / "out" / "adapter_model.safetensors"))
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items())


@pytest.mark.slow
def test_directions_become_orthonormal(saes: list[Sae], tmp_path: Path) -> None:
    model = save("qwen3", tmp_path / "model")
    d = torch.randn(3, 32, generator=torch.Generator().manual_seed(5))
    near = [
        Direction(1, d[0].numpy()),
        Direction(2, (7 * d[0] + d[1]).numpy()),
        Direction(0, d[1].numpy()),
    ]
    edits = [Edit(op="project", direction=direction) for direction in near]
    result = export_lora(model, [], edits, tmp_path / "out", MEASURED)
    assert result.measured["rank"] == 3
    B = load_file(tmp_path / "out" / "adapter_model.safetensors")[
        "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"
    ]
    Q = torch.linalg.qr(d[:2].double().T).Q
    torch.testing.assert_close((B.double() @ B.double().T), Q @ Q.T, atol=1e-5, rtol=0)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (3, 3, False)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (
            Edit("1/3", "scale"),
            'scale depends on.*export its direction as "1/3 project 1"',
        ),
        (Edit("1/3", "clamp"), "clamp depends on the feature's activation"),
        (Edit("1/3", "add", 2.0), "cannot add a constant: export a control vector"),
        (Edit("1/3", "readout_clamp"), "moves the residual to a target"),
        (Edit("1/3", "project", scope="decode"), "its scope is decode"),
        (Edit("1/3", "project", 0.0), "none changes anything"),
        (Edit("9/3", "project"), "the model has layers 0-3"),
        (Edit("2/3", "project"), "no SAE for layer 2"),
    ],
)
def test_edits_that_no_lora_expresses_are_refused(
    edit: Edit, why: str, saes: list[Sae], tmp_path: Path
) -> None:
    model = save("qwen3", tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(EditError, match=why):
        export_lora(model, saes, [edit], tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failed_export_leaves_nothing(
    saes: list[Sae], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save("qwen3", tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("saescope.control.exports.tensors.StoredTensor.chunks", full)
        with pytest.raises(ResourceError, match="No space left on device; nothing was left"):
            export_lora(model, saes, EDITS, tmp_path / "out")
    monkeypatch.setattr("saescope.control.exports.lora._write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_lora(model, saes, EDITS, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "out").mkdir()
    with pytest.raises(ResourceError, match="exists"):
        export_lora(model, saes, EDITS, tmp_path / "out")
