"""diff finds what changed between two checkpoints, its size and its place, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saescope.control.baking.bake import bake
from saescope.control.baking.settings import BakeSettings
from saescope.control.diff import diff
from saescope.control.diff_result import TensorChange
from saescope.errors import SourceError
from saescope.surfaces.cli import run as cli
from test_architectures import save
from test_bake import D, along, model_of


def by_name(a: Path, b: Path, *directions: Tensor) -> dict[str, TensorChange]:
    return {tensor.name: tensor for tensor in diff(a, b, directions).tensors}


def changed(model: Path, out: Path, **tensors: Any) -> Path:
    out.mkdir()
    for path in model.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    state = load_file(out / "model.safetensors")
    for name, change in tensors.items():
        key = next(key for key in state if name in key)
        state[key] = change(state[key])
    save_file(
        {k: t.contiguous() for k, t in state.items() if t.numel()},
        out / "model.safetensors",
        {"format": "pt"},
    )
    return out


def test_sharding_does_not_count_as_a_change(tmp_path: Path) -> None:
    model, other = save("qwen3", tmp_path / "a"), save("qwen3", tmp_path / "b", shard_size="1GB")
    difference = diff(model, other, [D[0]])
    assert difference.tensors == []
    assert difference.same == len(load_file(other / "model.safetensors"))
    assert difference.verdict == "The weights are the same."


def test_change_has_its_size_rank_and_place(tmp_path: Path) -> None:
    model = save("qwen3", tmp_path / "a", shard_size="1GB")
    u, v = torch.randn(64), torch.randn(32)
    noise = 0.1 * torch.randn(32, 64)
    other = changed(
        model,
        tmp_path / "b",
        up_proj=lambda w: w + torch.outer(u, v),
        down_proj=lambda w: w + noise,
        q_norm=lambda w: w[:4],
        k_norm=lambda w: w[:0],
        o_proj=lambda w: w.bfloat16(),
    )
    names = {name.split(".")[-2]: tensor for name, tensor in by_name(model, other).items()}
    assert {tensor.status for tensor in names.values()} == {"changed", "reshaped", "only in A"}
    assert (names["q_norm"].status, names["k_norm"].status) == ("reshaped", "only in A")
    up, down, o = names["up_proj"], names["down_proj"], names["o_proj"]
    before = load_file(model / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert up.relative == pytest.approx(float(u.norm() * v.norm() / before.norm()), rel=1e-4)
    assert up.largest == pytest.approx(float(u.abs().max() * v.abs().max()), rel=1e-4)
    assert up.rank1 == pytest.approx(1, abs=1e-5)
    assert down.rank1 is not None
    top = torch.linalg.svdvals(noise)[0] ** 2 / noise.pow(2).sum()
    assert 0.7 * float(top) < down.rank1 <= float(top) + 1e-4
    assert o.dtype == "F32 → BF16"
    assert o.relative is not None
    assert 0 < o.relative < 0.01
    assert (up.written, up.read, up.layer) == (None, None, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "qwen3.5 moe", "gpt2", "gemma3"])
def test_projected_writers_are_recognised(name: str, tmp_path: Path) -> None:
    model = model_of(name, tmp_path / "a")
    bake(model, (), [along(0)], tmp_path / "b", BakeSettings(method="every-write", measure=False))
    difference = diff(model, tmp_path / "b", [D[0]])
    assert all(tensor.read is None and tensor.written is not None for tensor in difference.changed)
    # Before Gemma's norms the least harmful change is taken, not one along the direction alone.
    assert all(
        (tensor.written or 0) > (0.8 if name == "gemma3" else 0.99999)
        for tensor in difference.changed
    )
    assert all(
        (tensor.rank1 or 0) > 0.999
        for tensor in difference.changed
        if len(tensor.shape) > 1 and "experts" not in tensor.name
    )
    assert "in what they write along the direction (layers 0-3)" in difference.verdict
    # Everything else is the same, the lm_head of its own too.
    assert {tensor.status for tensor in difference.tensors} == {"changed"}
    assert bool(difference.notes) == (name in ("gpt2", "gemma3"))
    elsewhere = diff(model, tmp_path / "b", [D[1] - D[0] * (D[0] @ D[1]) / (D[0] @ D[0])])
    assert all((tensor.written or 0) < 0.5 for tensor in elsewhere.changed)


@pytest.mark.slow
def test_projected_readers_are_recognised(tmp_path: Path) -> None:
    model = model_of("qwen3", tmp_path / "a", tie_word_embeddings=True)
    bake(
        model,
        (),
        [along(0), along(1)],
        tmp_path / "b",
        BakeSettings(method="readers-above", measure=False),
    )
    difference = diff(model, tmp_path / "b", D[:2])
    assert {tensor.layer for tensor in difference.changed} == {2, 3, None}
    assert all(
        (tensor.read or 0) > 0.99999 and tensor.written is None for tensor in difference.changed
    )
    head = next(tensor for tensor in difference.changed if tensor.layer is None)
    assert (head.name, head.note) == (
        "lm_head.weight",
        "compared with the embedding that A ties it to",
    )
    back = diff(tmp_path / "b", model, D[:2])
    assert {tensor.name for tensor in back.changed} == {
        tensor.name for tensor in difference.changed
    }
    assert all((tensor.read or 0) > 0.99999 for tensor in back.changed)


def test_prefixes_are_matched_and_unknown_architectures_compared(tmp_path: Path) -> None:
    model = save("llama", tmp_path / "a", shard_size="1GB")
    other = changed(model, tmp_path / "b")
    state = load_file(other / "model.safetensors")
    renamed = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    save_file(renamed | {"extra": torch.ones(2)}, other / "model.safetensors", {"format": "pt"})
    difference = diff(model, other)
    assert [(tensor.name, tensor.status) for tensor in difference.tensors] == [
        ("extra", "only in B")
    ]
    for folder in (model, other):
        (folder / "config.json").write_text('{"model_type": "nobody"}')
    assert {tensor.status for tensor in diff(model, other).tensors} == {"only in A", "only in B"}
    with pytest.raises(SourceError, match="read and write the residual is not known"):
        diff(model, other, [D[0]])


def test_wrong_widths_are_refused(tmp_path: Path) -> None:
    model = save("llama", tmp_path / "a")
    with pytest.raises(SourceError, match=r"a direction is 7 wide, residuals of .* 32"):
        diff(model, model, [torch.ones(7)])
    (model / "model.safetensors.index.json").unlink()
    with pytest.raises(SourceError, match="only safetensors"):
        diff(model, model)


@pytest.mark.slow
def test_diff_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["--sae", "saescope-tiny-chat-sae", "--model", "saescope-tiny-chat"]
    out = str(tmp_path / "out")
    assert (
        cli(["bake", "--edit", "2/412 project", "--out", out, "--no-measure", *pair, "--json"]) == 0
    )
    capsys.readouterr()
    command = ["diff", "saescope-tiny-chat", out, "--edit", "2/412 project", *pair]
    assert cli([*command, "--json"]) == 0
    difference = json.loads(capsys.readouterr().out)
    assert (difference["changed"], difference["only_in_a"], difference["only_in_b"]) == (13, 0, 0)
    assert all(tensor["written"] > 0.9 for tensor in difference["tensors"])
    assert cli([*command, "--n-top", "3"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "and 10 more" in shown
    assert "13 in what they write along the direction" in shown
    assert cli(["diff", "saescope-tiny-chat", str(tmp_path / "nowhere")]) == 2
