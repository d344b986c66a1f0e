"""Files of SAEs as they are found: other dtypes, nested, turned, with tensors of their own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae
from saescope.errors import SourceError

State = dict[str, Tensor]


def linear(state: State) -> State:
    return {
        "encoder.weight": state["W_enc"],
        "encoder.bias": state["b_enc"],
        "decoder.weight": state["W_dec"],
        "decoder.bias": state["b_dec"],
    }


def turned(state: State, *names: str) -> State:
    return {name: t.T.contiguous() if name in names else t for name, t in state.items()}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "state_dict": lambda state: {"state_dict": state, "step": 1000},
    "model": lambda state: {"model": state, "optimizer": {"lr": 1e-3}},
    "model_state_dict": lambda state: {"model_state_dict": state, "epoch": 1},
    "nested twice": lambda state: {"model": {"state_dict": state}},
    "compiled": lambda state: prefixed("_orig_mod.", state),
    "data parallel": lambda state: prefixed("module.", state),
    "a part of a module": lambda state: {"state_dict": prefixed("sae.", state)},
    "beside numbers": lambda state: {**state, "k": 8, "step": torch.tensor(5)},
    "linear layers": linear,
    "nested linear layers": lambda state: {"state_dict": linear(state)},
    "encoder turned": lambda state: turned(state, "W_enc"),
    "decoder turned": lambda state: turned(state, "W_dec"),
    "both turned": lambda state: turned(state, "W_enc", "W_dec"),
    "neutral scale": lambda state: {**state, "scale": torch.ones(1), "mean": torch.zeros(32)},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_torch_files_are_the_same_sae(name: str, tmp_path: Path) -> None:
    state = tiny.sae_tensors()
    torch.save(LAYOUTS[name](state), tmp_path / "layer3.sae.pt")
    assert_same(load_sae(tmp_path, 3, k=8), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("container", ["qwen-scope", "saelens"])
def test_other_dtypes_are_encoded_in_float32(
    dtype: torch.dtype, container: str, tmp_path: Path
) -> None:
    state = {name: tensor.to(dtype) for name, tensor in tiny.sae_tensors(seed=1).items()}
    if container == "qwen-scope":
        torch.save(state, tmp_path / "layer1.sae.pt")
        sae = load_sae(tmp_path, 1, k=8)
    else:
        tiny.save_saelens(tmp_path, [1], "topk", {"k": 8, "dtype": str(dtype)})
        weights = tmp_path / "blocks.1.hook_resid_post" / "sae_weights.safetensors"
        save_file({name: t.to(dtype) for name, t in load_file(weights).items()}, weights)
        sae = load_sae(tmp_path, 1)
    assert sae.W_enc.dtype == sae.b_enc.dtype == torch.float32
    assert_same(sae, {name: tensor.float() for name, tensor in state.items()})


def assert_same(sae: Sae, state: State) -> None:
    h = torch.randn(20, 32, generator=torch.Generator().manual_seed(2))
    top = (h @ state["W_enc"].T + state["b_enc"]).topk(8)
    sparse = sae.encode(h)
    assert torch.equal(sparse.ids, top.indices)
    torch.testing.assert_close(sparse.acts, top.values.relu(), atol=1e-5, rtol=1e-5)
    dense = torch.zeros(20, len(state["b_enc"])).scatter(1, top.indices, top.values.relu())
    torch.testing.assert_close(
        sae.decode(sparse), dense @ state["W_dec"].T + state["b_dec"], atol=1e-5, rtol=1e-5
    )


REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "scale": ({"scale": torch.tensor(0.1)}, "it holds scale, which changes the SAE's input"),
    "std": ({"std": torch.full((32,), 2.0)}, "it holds std"),
    "mean": ({"act.mean": torch.ones(32)}, "it holds act.mean"),
    "pre-bias": ({"b_pre": torch.ones(32)}, "b_pre"),
    "skip": ({"W_skip": torch.eye(32)}, "it holds W_skip"),
    "whitening": ({"whitening_matrix": torch.eye(32)}, "it holds whitening_matrix"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("container", ["qwen-scope", "saelens"])
def test_tensors_that_change_the_input_are_not_left_out(
    name: str, container: str, tmp_path: Path
) -> None:
    extra, message = REFUSED[name]
    if container == "qwen-scope":
        torch.save(tiny.sae_tensors() | extra, tmp_path / "layer1.sae.pt")
    else:
        tiny.save_saelens(tmp_path, [1], "topk", {"k": 8})
        weights = tmp_path / "blocks.1.hook_resid_post" / "sae_weights.safetensors"
        save_file(load_file(weights) | extra, weights)
    with pytest.raises(SourceError, match=message) as caught:
        load_sae(tmp_path, 1, k=8)
    assert "\n" not in str(caught.value)


def test_a_pre_bias_in_place_of_the_decoders_is_subtracted_and_added(tmp_path: Path) -> None:
    tiny.save_saelens(tmp_path / "a", [1], "standard", {"apply_b_dec_to_input": True})
    tiny.save_saelens(tmp_path / "b", [1], "standard")
    weights = tmp_path / "b" / "blocks.1.hook_resid_post" / "sae_weights.safetensors"
    state = load_file(weights)
    state["b_pre"] = state.pop("b_dec")
    save_file(state, weights)
    h = torch.randn(20, 32, generator=torch.Generator().manual_seed(2))
    expected, sae = load_sae(tmp_path / "a", 1), load_sae(tmp_path / "b", 1)
    assert torch.equal(sae.encode(h).acts, expected.encode(h).acts)
    assert torch.equal(sae.decode(sae.encode(h)), expected.decode(expected.encode(h)))
    save_file(state | {"scale": torch.tensor(0.05)}, weights)
    with pytest.raises(SourceError, match="it holds scale"):
        load_sae(tmp_path / "b", 1)


def dictionary_states() -> dict[str, dict[str, Any]]:
    """What each class of dictionary_learning saves, as far as its names tell the class."""
    weights = tiny.sae_tensors()
    matrices = {"encoder.weight": weights["W_enc"], "decoder.weight": weights["W_dec"]}
    encoder = {**matrices, "encoder.bias": weights["b_enc"]}
    plain = turned(weights, "W_enc", "W_dec") | {"threshold": torch.full((256,), 0.5)}
    gated = {
        "r_mag": torch.ones(256) / 9,
        "gate_bias": torch.ones(256),
        "mag_bias": torch.ones(256),
    }
    return {
        "AutoEncoder": {**encoder, "bias": weights["b_dec"]},
        "AutoEncoderNew": {**encoder, "decoder.bias": weights["b_dec"]},
        "AutoEncoderTopK": {**encoder, "b_dec": weights["b_dec"], "k": torch.tensor(8)},
        "GatedAutoEncoder": {**matrices, **gated, "decoder_bias": weights["b_dec"]},
        "JumpReluAutoEncoder": plain,
        "MatryoshkaBatchTopKSAE": {**plain, "k": torch.tensor(8), "threshold": torch.tensor(0.5)},
    }


@pytest.mark.parametrize("name", dictionary_states())
def test_a_bare_dictionary_is_told_by_its_tensors(name: str, tmp_path: Path) -> None:
    state = dictionary_states()[name]
    h = torch.randn(20, 32, generator=torch.Generator().manual_seed(2))
    answers = []
    for folder in (tmp_path / "bare", tmp_path / "with_config"):
        folder.mkdir()
        torch.save(state, folder / "ae.pt")
        if folder.name != "bare":
            trainer = {"dict_class": name, "k": 8, "layer": 3}
            (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
        sae = load_sae(folder, 3)
        sparse = sae.encode(h)
        assert (sparse.acts > 0).any()
        answers.append((sparse.acts, sparse.ids, sae.decode(sparse)))
    for bare, configured in zip(*answers, strict=True):
        assert torch.equal(bare, configured)


def test_a_dictionary_that_several_classes_write_needs_its_config(tmp_path: Path) -> None:
    state = dictionary_states()["AutoEncoderTopK"] | {"threshold": torch.tensor(0.5)}
    torch.save(state, tmp_path / "ae.pt")
    with pytest.raises(
        SourceError, match=r"do not tell which class .*: add its config\.json"
    ) as caught:
        load_sae(tmp_path, 3)
    assert "\n" not in str(caught.value)
