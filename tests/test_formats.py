"""Qwen-Scope files: read without copying, and refused in one line when they are anything else."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from saescope.engine.load import load_sae
from saescope.errors import SourceError
from saescope.sources.catalog import layer_file, layer_of
from saescope.sources.formats import qwen_scope


def save(path: Path, state: Any, **options: Any) -> Path:
    torch.save(state, path, **options)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "layer3.sae.pt"


def test_tensors_come_back_as_stored(path: Path) -> None:
    state = tiny.sae_tensors()
    weights = qwen_scope.read(save(path, state), {})
    for name, tensor in state.items():
        assert torch.equal(getattr(weights, name), tensor)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="shows what is mapped")
def test_file_is_mapped_not_read(path: Path) -> None:
    weights = qwen_scope.read(save(path, tiny.sae_tensors()), {})
    assert str(path) in Path("/proc/self/maps").read_text()
    del weights


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(path: Path, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in tiny.sae_tensors().items()}
    sae = load_sae(save(path, state), 3, k=8)
    for name, tensor in state.items():
        assert getattr(sae, name).dtype == torch.float32
        assert torch.equal(getattr(sae, name), tensor.float())


def test_parameters_and_further_entries_are_no_obstacle(path: Path) -> None:
    state = {n: torch.nn.Parameter(t) for n, t in tiny.sae_tensors().items()} | {
        "step": 7,
        "note": "x",
    }
    weights = qwen_scope.read(save(path, state), {})
    assert torch.equal(weights.b_enc, tiny.sae_tensors()["b_enc"])
    assert not weights.W_enc.requires_grad


def test_file_of_old_torch_is_read(path: Path) -> None:
    weights = qwen_scope.read(
        save(path, tiny.sae_tensors(), _use_new_zipfile_serialization=False), {}
    )
    assert torch.equal(weights.W_dec, tiny.sae_tensors()["W_dec"])


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("form", ["zip", "old torch", "plain pickle"])
def test_code_is_refused_and_not_run(path: Path, tmp_path: Path, form: str) -> None:
    mark = tmp_path / "was run"
    state = {**tiny.sae_tensors(), "trap": Trap(mark)}
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        save(path, state, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(SourceError, match=r"layer3\.sae\.pt is refused.*code in it was not run"):
        qwen_scope.read(path, {})
    assert not mark.exists()
    torch.load(path, weights_only=False) if form != "plain pickle" else pickle.loads(
        path.read_bytes()
    )
    assert mark.exists()  # the trap does work


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999])
def test_truncated_file_is_refused(path: Path, share: float, old: bool) -> None:
    data = save(path, tiny.sae_tensors(), _use_new_zipfile_serialization=not old).read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(SourceError, match=r"layer3\.sae\.pt"):
        qwen_scope.read(path, {})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        b"PK\x03\x04" + b"\0" * 100,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2148\n",
        b"<!DOCTYPE html><html>not found</html>",
        b'{"error": "not found"}',
    ],
    ids=["empty", "zeros", "torn zip", "git-lfs pointer", "html", "json"],
)
def test_other_files_are_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"layer3\.sae\.pt"):
        qwen_scope.read(path, {})


def test_zip_of_something_else_is_refused(path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros(3))
    path.write_bytes(buffer.getvalue())
    with pytest.raises(SourceError, match=r"layer3\.sae\.pt"):
        qwen_scope.read(path, {})


@pytest.mark.parametrize(
    "state", [[torch.zeros(2)], torch.zeros(3), 5, None], ids=["list", "tensor", "int", "None"]
)
def test_file_without_a_dict_is_refused(path: Path, state: Any) -> None:
    with pytest.raises(SourceError, match=f"holds a {type(state).__name__}, not a dict"):
        qwen_scope.read(save(path, state), {})


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_missing_tensor_is_named(path: Path, name: str) -> None:
    state = tiny.sae_tensors()
    del state[name]
    with pytest.raises(SourceError, match=f"has no tensor {name} "):
        qwen_scope.read(save(path, state), {})
    with pytest.raises(SourceError, match=f"has no tensor {name} "):
        qwen_scope.read(save(path, state | {name: [1.0, 2.0]}), {})


def _other_shapes(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    return {
        "biases swapped": {"b_enc": state["b_dec"], "b_dec": state["b_enc"]},
        "fewer decoder columns": {"W_dec": state["W_dec"][:, 1:]},
        "encoder flat": {"W_enc": state["W_enc"].flatten()},
        "encoder in a batch": {"W_enc": state["W_enc"][None]},
        "bias a column": {"b_enc": state["b_enc"][:, None]},
        "bias a number": {"b_dec": torch.tensor(0.0)},
    }


@pytest.mark.parametrize("case", _other_shapes(tiny.sae_tensors()))
def test_shapes_that_do_not_fit_are_shown(path: Path, case: str) -> None:
    state = tiny.sae_tensors()
    change = _other_shapes(state)[case]
    name, tensor = next(iter(change.items()))
    with pytest.raises(SourceError) as caught:
        qwen_scope.read(save(path, {n: t.clone() for n, t in (state | change).items()}), {})
    assert f"{name} {tuple(tensor.shape)}" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_tensors_that_are_no_floats_are_refused(path: Path, dtype: torch.dtype) -> None:
    state = tiny.sae_tensors()
    with pytest.raises(
        SourceError, match=f"W_enc is {dtype} .*, not a plain floating-point tensor"
    ):
        qwen_scope.read(save(path, state | {"W_enc": state["W_enc"].to(dtype)}), {})


@pytest.mark.parametrize("form", ["meta", "sparse"])
def test_tensor_that_is_no_plain_array_is_refused(path: Path, form: str) -> None:
    state = tiny.sae_tensors()
    state["W_dec"] = state["W_dec"].to("meta") if form == "meta" else state["W_dec"].to_sparse()
    with pytest.raises(
        SourceError, match=r"W_dec is torch\.float32 .*, not a plain floating-point tensor"
    ):
        qwen_scope.read(save(path, state), {})


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("layer0.sae.pt", 0),
        ("layer17.sae.pt", 17),
        ("layer.sae.pt", None),
        ("layer1.pt", None),
        ("xlayer1.sae.pt", None),
    ],
)
def test_layer_files_are_named_by_their_layer(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer
    assert layer is None or layer_file(layer) == name
