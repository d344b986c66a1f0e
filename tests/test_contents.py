"""Which stored tensor fills which parameter: as stock transformers decides it, or a refusal."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    GraniteMoeConfig,
    MixtralConfig,
    PreTrainedConfig,
)

import reference
import tiny
from saescope.engine.contents import Contents
from saescope.engine.lm import load_lm
from saescope.engine.names import Source
from saescope.errors import CheckpointWarning, SourceError
from saescope.sources.files import open_files

State = dict[str, Tensor]
IDS = torch.tensor([[5, 17, 40, 2, 9]])


def rewrite(model: Path, change: Callable[[State], State]) -> Path:
    """Change the tensors of a checkpoint that is one file."""
    path = model / "model.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return model


def configure(model: Path, **values: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def assert_equals_stock(model: Path) -> None:
    """Logits of the whole model, and the last block's output, are those of stock transformers."""
    stock = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, trust_remote_code=False
    ).eval()
    lm = load_lm(model, dtype="float32")
    with torch.inference_mode():
        torch.testing.assert_close(lm.whole(input_ids=IDS).logits, stock(input_ids=IDS).logits)


@pytest.mark.parametrize("same", [False, True])
def test_head_beside_a_tied_config_counts_if_it_differs(same: bool, tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    configure(model, tie_word_embeddings=True)
    if same:
        rewrite(model, lambda s: s | {"lm_head.weight": s["model.embed_tokens.weight"].clone()})
    assert Contents.open(open_files(str(model)), torch.float32).tied == same
    assert_equals_stock(model)


def test_tied_model_may_store_the_head_alone(tmp_path: Path) -> None:
    def only_head(state: State) -> State:
        return {
            name.replace("model.embed_tokens", "lm_head"): tensor for name, tensor in state.items()
        }

    model = rewrite(tiny.save_model(tmp_path / "model", tied=True), only_head)
    assert_equals_stock(model)


def test_untied_model_without_a_head_is_refused(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    rewrite(model, lambda s: {name: t for name, t in s.items() if name != "lm_head.weight"})
    with pytest.raises(SourceError, match=r"has no tensor lm_head.weight \(1 missing\)"):
        _ = load_lm(model).whole


def test_single_file_comes_before_an_index(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", shard_size="20KB")
    other = tiny.save_model(tmp_path / "other", seed=1)
    (model / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert_equals_stock(model)


def test_tensors_that_the_config_does_not_know_are_named(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    biases = {f"model.layers.{n}.self_attn.q_proj.bias": torch.ones(32) for n in range(3)}
    other = {"model.layers.7.mlp.up_proj.weight": torch.ones(2), "vision.patch": torch.ones(2)}
    rewrite(model, lambda state: state | biases | other)
    message = r"does not know model\.layers\.0\.self_attn\.q_proj\.bias.* check config\.json"
    with pytest.warns(CheckpointWarning, match=message) as seen:
        lm = load_lm(model)
    assert len(seen) == 1
    assert "layers.7" not in str(seen[0].message)
    assert lm.spec.n_layers == 3


def test_known_leftovers_are_not_named(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(model, lambda state: state | {name: torch.ones(4)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_lm(model)


def _as_fp8(state: State) -> State:
    name = "model.layers.1.mlp.up_proj.weight"
    return state | {name: state[name].to(torch.float8_e4m3fn)}


def _as_int8_with_scales(state: State) -> State:
    name = "model.layers.1.mlp.up_proj.weight"
    scale = {f"{name}_scale": torch.ones(1)}
    return state | scale | {name: (state[name] * 100).to(torch.int8)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_as_fp8, r"up_proj.weight is stored as float8_e4m3fn, which needs scales"),
        (_as_int8_with_scales, r"is quantised \(it stores .*up_proj.weight_scale\)"),
    ],
)
def test_weights_that_need_scales_are_refused(
    change: Callable[[State], State], message: str, tmp_path: Path
) -> None:
    model = rewrite(tiny.save_model(tmp_path / "model"), change)
    with pytest.raises(SourceError, match=message):
        load_lm(model)


def test_adapter_beside_the_model_is_refused(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match="LoRA adapter"):
        load_lm(model)


SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.2,
}
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2, "num_key_value_heads": 2}
RENAMED = {
    "embed_out": GPTNeoXConfig(**SIZES),
    "block_sparse_moe.experts.0.w1": MixtralConfig(**SIZES, **EXPERTS, sliding_window=None),
    "block_sparse_moe.input_linear": GraniteMoeConfig(**SIZES, **EXPERTS),
}


@pytest.mark.parametrize("stored", RENAMED)
def test_names_that_transformers_converts(stored: str, tmp_path: Path) -> None:
    config: PreTrainedConfig = RENAMED[stored]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    assert any(stored in name for name in load_file(tmp_path / "model.safetensors"))
    assert_equals_stock(tmp_path)
    assert len(reference.blocks(load_lm(tmp_path).whole)) == 2


def test_axis_of_a_converted_parameter_is_found_in_its_stored_tensors() -> None:
    from transformers.core_model_loading import Chunk, MergeModulelist, Transpose, WeightConverter

    def source(*operations: object) -> Source:
        return Source(("a",), ("a",), WeightConverter("a", "b", list(operations)), "b")

    assert Source(("a",)).stored_axis(-2, 2) == -2
    assert source(MergeModulelist(dim=0)).stored_axis(-2, 3) == -2
    assert source(Transpose(1, 2)).stored_axis(-1, 3) == -2
    assert source(Transpose(0, 1), MergeModulelist(dim=0)).stored_axis(-1, 3) == -2
    assert source(Chunk(dim=0)).stored_axis(-1, 2) == -1
    assert source(Chunk(dim=0)).stored_axis(-2, 2) is None
