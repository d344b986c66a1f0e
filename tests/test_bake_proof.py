"""No bake is written that is further from its hook than doing nothing, or that others read so."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

import tiny
from saescope.control.baking import stock
from saescope.control.baking.bake import bake
from saescope.control.baking.bake_result import BakeResult
from saescope.control.baking.distance import Distance
from saescope.control.baking.settings import BakeSettings, Method
from saescope.control.diff import diff
from saescope.control.edits import Edit
from saescope.errors import EditError
from saescope.sources.directions import Direction
from saescope.sources.prompts import texts
from saescope.surfaces.cli import run as cli
from test_architectures import HEADS, SIZES, WINDOW, one_thread

pytestmark = pytest.mark.slow  # whole bakes, measured

__all__ = ["one_thread"]

NEUTRAL = texts(tiny.TEXTS)[0].prompts
VALUES = np.random.default_rng(0).normal(size=32)
EDIT = Edit(direction=Direction(1, VALUES, "d"), op="project")
POST = ("post_attention_layernorm", "post_feedforward_layernorm")


def gemma(folder: Path, zeros: float, parts: tuple[str, ...] = ("layernorm",)) -> Path:
    """Gemma 3 stores γ - 1: these norms have γ = 0 in a share of their coordinates."""
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **HEADS, **WINDOW))
    random = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.15)
        elif "layernorm" in name:
            parameter.data = 0.3 * torch.rand(parameter.shape, generator=random)
            if any(part in name for part in parts):
                chosen = torch.randperm(len(parameter), generator=random)
                parameter.data[chosen[: int(zeros * len(parameter))]] = -1.0
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def attempt(model: Path, out: Path, method: Method, **settings: Any) -> BakeResult:
    return bake(model, (), [EDIT], out, BakeSettings(method=method, **settings), neutral=NEUTRAL)


@pytest.mark.parametrize("zeros", [0.1, 0.5])
def test_zeros_after_writers_are_dropped_and_measured(zeros: float, tmp_path: Path) -> None:
    model = gemma(tmp_path / "model", zeros, POST)
    result = attempt(model, tmp_path / "out", "every-write", force=True)
    assert not result.exact
    assert result.kl_hook_baked is not None
    assert result.kl_base_hook is not None
    assert 0 < result.kl_hook_baked.mean < result.kl_base_hook.mean
    unit = torch.from_numpy(VALUES / np.linalg.norm(VALUES)).float()
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False).eval()
    left = []
    for block in whole.model.layers:
        block.register_forward_hook(
            lambda _m, _i, out: left.append(float((out @ unit).abs().max() / out.abs().max()))
        )
    with torch.inference_mode():
        whole(input_ids=torch.arange(3, 20)[None])
    assert max(left) < 1e-5


@pytest.mark.parametrize("zeros", [0.1, 0.5])
def test_zeros_before_readers_are_dropped_and_measured(zeros: float, tmp_path: Path) -> None:
    model = gemma(tmp_path / "model", zeros)
    result = attempt(model, tmp_path / "out", "readers-above")
    assert not result.exact
    assert "norms hold zeros (γ = 0)" in str(result.why_not)
    assert result.kl_hook_baked is not None
    assert result.kl_base_hook is not None
    assert 0 < result.kl_hook_baked.mean < result.kl_base_hook.mean
    # The hook projects before γ, so it also takes out what only coordinates with γ = 0 hold.
    hooked = _with_projected_norms(model)
    baked = _log_probs(
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False).eval()
    )
    kl = float((hooked.exp() * (hooked - baked)).sum(-1).mean())
    assert result.kl_hook_baked.mean == pytest.approx(kl, rel=1e-3)


def _log_probs(model: Any) -> torch.Tensor:
    tok = tiny.tokenizer()
    with torch.inference_mode():
        rows = [model(torch.tensor([tok(p.text)["input_ids"]])).logits[0] for p in NEUTRAL]
    return torch.cat(rows).double().log_softmax(-1)


def _with_projected_norms(folder: Path) -> torch.Tensor:
    """The model with hooks on every norm above layer 1, written here."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    unit = torch.from_numpy(VALUES / np.linalg.norm(VALUES)).float()

    def hook(norm: Any, inputs: Any, _out: Any) -> Any:
        h = inputs[0]
        u = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + norm.eps)
        return (u - (u @ unit)[..., None] * unit) * (1 + norm.weight)

    norms = [model.model.norm]
    for block in model.model.layers[2:]:
        norms += [block.input_layernorm, block.pre_feedforward_layernorm]
    for norm in norms:
        norm.register_forward_hook(hook)
    return _log_probs(model)


def distance(mean: float) -> Distance:
    return Distance(tokens=9, mean=mean, p95=mean, p99=mean, largest=mean, flips=0.0)


FAR = [(2.0, 1.0, True), (1.0, 2.0, False), (1e-12, 0.0, False), (float("nan"), 1.0, True)]


@pytest.mark.parametrize(("away", "effect", "refused"), FAR)
def test_what_is_further_than_doing_nothing_is_refused(
    away: float, effect: float, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gemma(tmp_path / "model", 0.5)
    means = iter([away, effect, 1.0, 1.0, 1.0] * 2)
    monkeypatch.setattr(
        "saescope.control.baking.measuring.distance", lambda _p, _q: distance(next(means))
    )
    out = tmp_path / "out"
    if not refused:
        assert attempt(model, out, "every-write").out == out
        return
    for settings in ({}, {"measure": False}):
        with pytest.raises(
            EditError, match=r"method 'every-write' gives weights .*nothing was"
        ) as e:
            attempt(model, out, "every-write", **settings)
        assert "\n" not in str(e.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    means = iter([away, effect, 1.0, 1.0, 1.0])
    assert attempt(model, out, "every-write", force=True).kl_hook_baked is not None


def test_unmeasured_bakes_say_so(tmp_path: Path) -> None:
    """Exact ones are not run at all; approximate ones on a few short texts."""
    model = gemma(tmp_path / "model", 0.5, POST)
    exact = attempt(model, tmp_path / "exact", "readers-above", measure=False)
    assert exact.exact
    assert exact.kl_hook_baked is None
    assert exact.not_judged == "nothing was measured"
    approximate = attempt(model, tmp_path / "approximate", "every-write", measure=False)
    assert approximate.kl_hook_baked is not None
    assert approximate.not_judged == "measuring is off"
    assert any("of 8 sentences only" in note for note in approximate.notes)


def test_transformers_judges_both_folders(tmp_path: Path) -> None:
    model = gemma(tmp_path / "model", 0.5)
    result = attempt(model, tmp_path / "out", "every-write", force=True)
    judged = result.judged_by_transformers
    assert judged is not None
    assert judged.model_class == "Gemma3ForCausalLM"
    assert judged.agrees
    assert judged.largest_difference < 1e-4
    assert judged.own_kl_base_baked == pytest.approx(judged.kl_base_baked, rel=1e-3)
    plain, baked = (
        _log_probs(AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval())
        for folder in (model, tmp_path / "out")
    )
    by_hand = (plain.exp() * (plain - baked)).sum(-1)[: judged.tokens].mean()
    assert judged.kl_base_baked == pytest.approx(float(by_hand), rel=1e-3)
    manifest = json.loads((tmp_path / "out/saescope_bake.json").read_text())
    assert manifest["bake"]["judged_by_transformers"]["agrees"] is True
    assert "Gemma3ForCausalLM" in (tmp_path / "out/README.md").read_text()


def test_what_transformers_reads_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gemma(tmp_path / "model", 0.5)
    load = stock._load

    def other_head(files: Any) -> Any:
        loaded = load(files)
        loaded.lm_head.weight = torch.nn.Parameter(loaded.lm_head.weight.roll(1, 0))
        return loaded

    monkeypatch.setattr(stock, "_load", other_head)
    with pytest.raises(EditError, match=r"transformers \(Gemma3ForCausalLM\) reads the model"):
        attempt(model, tmp_path / "out", "every-write")
    assert not (tmp_path / "out").exists()
    forced = attempt(model, tmp_path / "out", "every-write", force=True)
    assert forced.judged_by_transformers is not None
    assert not forced.judged_by_transformers.agrees


def test_a_model_that_memory_cannot_hold_is_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gemma(tmp_path / "model", 0.5)
    monkeypatch.setattr(stock, "free_memory", lambda: 1000)
    result = attempt(model, tmp_path / "out", "every-write", force=True)
    assert result.judged_by_transformers is None
    assert "1 kB are free" in str(result.not_judged)


def test_error_above_what_the_edit_does_is_refused(tmp_path: Path) -> None:
    """The hook at every write moves this model further than the edit at its layer."""
    model = gemma(tmp_path / "model", 0.5, POST)
    with pytest.raises(EditError, match=r"while the edit changes the model by 0\.0"):
        attempt(model, tmp_path / "out", "every-write")
    assert not (tmp_path / "out").exists()


def test_refusal_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With nearly all coordinates zeroed, no weights write what the hook leaves."""
    model, sae = gemma(tmp_path / "model", 0.95, POST), tiny.save_sae(tmp_path / "sae")
    sets, out = tmp_path / "sets", tmp_path / "out"
    sets.mkdir()
    (sets / "a.txt").write_text("\n".join(p.display_text for p in NEUTRAL[:3]))
    command = ["bake", "--edit", "1/3 project", "--model", str(model), "--sae", str(sae)]
    command += ["--method", "every-write", "--out", str(out)]
    for options in (["--neutral", str(sets)], ["--no-measure"]):
        assert cli([*command, *options]) == 2
        [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("saescope: ")]
        assert "set --force to write it all the same" in line
        assert not out.exists()
    assert cli([*command, "--force", "--neutral", str(sets)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "judged by transformers (Gemma3ForCausalLM)" in shown


def test_diff_past_zeros_shows_numbers(tmp_path: Path) -> None:
    model = gemma(tmp_path / "model", 0.5)
    attempt(model, tmp_path / "out", "every-write", measure=False, force=True)
    changes = diff(model, tmp_path / "out", [torch.from_numpy(VALUES)]).changed
    figures = [x for t in changes for x in (t.relative, t.largest, t.rank1, t.written, t.read)]
    assert all(np.isfinite(x) for x in figures if x is not None)
    assert any(tensor.written is not None for tensor in changes)


def test_diff_counts_values_that_are_no_numbers(tmp_path: Path) -> None:
    folders = [tiny.save_model(tmp_path / name) for name in ("a", "b")]
    name = "model.layers.1.mlp.down_proj.weight"
    for folder, (row, value) in zip(folders, ((0, float("nan")), (1, float("inf"))), strict=True):
        state = load_file(folder / "model.safetensors")
        state[name][row, 0] = value
        state[name][5, 5] += row
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    result = diff(*folders, [torch.from_numpy(VALUES)])
    [change] = result.changed
    assert result.notes == [f"{name}: {change.note}"]
    assert diff(folders[0], folders[0]).tensors == []
    assert (change.name, change.largest) == (name, pytest.approx(1.0))
    assert change.note == "2 values are not finite in A or in B: left out"
    figures = (change.relative, change.rank1, change.written)
    assert all(np.isfinite(x) for x in figures if x is not None)
