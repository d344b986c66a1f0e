"""Quantised checkpoints give the numbers of transformers' own dequantised loading, or a refusal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GgufConfig,
    GptOssConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.utils.quantization_config import (
    CompressedTensorsConfig,
    FineGrainedFP8Config,
    Mxfp4Config,
)

import tiny
from saescope.control.baking.bake import bake
from saescope.control.edits import Edit
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.errors import SourceError

State = dict[str, Tensor]
IDS = torch.tensor([[5, 17, 40, 2, 9, 31]])
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}


def save(folder: Path, config: PreTrainedConfig) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def quantise(model: Path, settings: dict[str, Any], change: Callable[[str, Tensor], State]) -> Path:
    """Replace tensors by their quantised form; `change` returns what stands for each of them."""
    path = model / "model.safetensors"
    state: State = {}
    for name, tensor in load_file(path).items():
        state |= change(name, tensor)
    save_file({n: t.contiguous() for n, t in state.items()}, path, metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return model


def _fp8(name: str, tensor: Tensor) -> State:
    """Blocks of 32 x 32, each with its scale."""
    if not name.endswith("proj.weight"):
        return {name: tensor}
    rows, columns = tensor.shape
    blocks = tensor.float().view(rows // 32, 32, columns // 32, 32)
    scales = blocks.abs().amax((1, 3), keepdim=True) / 448
    weight = (blocks / scales).view(rows, columns).to(torch.float8_e4m3fn)
    return {name: weight, f"{name}_scale_inv": scales.view(rows // 32, columns // 32)}


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}


def _mxfp4(name: str, tensor: Tensor) -> State:
    """Random 4-bit numbers, two in a byte, in groups of 32 with one exponent each."""
    if not name.endswith(("gate_up_proj", "down_proj")):
        return {name: tensor}
    n_experts, columns, rows = tensor.shape
    random = torch.Generator().manual_seed(len(name))
    blocks = torch.randint(0, 256, (n_experts, rows, columns // 32, 16), generator=random)
    scales = torch.randint(118, 124, (n_experts, rows, columns // 32), generator=random)
    return {
        f"{name}_blocks": blocks.to(torch.uint8),
        f"{name}_scales": scales.to(torch.uint8),
    }


def _int8(name: str, tensor: Tensor) -> State:
    """Whole numbers with one scale per row."""
    if not name.endswith("proj.weight"):
        return {name: tensor}
    scales = tensor.float().abs().amax(1, keepdim=True) / 127
    weight = (tensor.float() / scales).round().to(torch.int8)
    return {name: weight, f"{name}_scale": scales.to(torch.bfloat16)}


INT8_WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": INT8_WEIGHTS}},
    "ignore": ["lm_head"],
}
QUANTISED = {
    "compressed-tensors": (Qwen3Config(**SIZES), INT8, _int8, CompressedTensorsConfig),
    "fp8": (Qwen3Config(**SIZES), FP8, _fp8, FineGrainedFP8Config),
    "fp8 experts": (
        Qwen3MoeConfig(**SIZES, **EXPERTS, num_experts=4), FP8, _fp8, FineGrainedFP8Config,
    ),
    "mxfp4": (
        GptOssConfig(**SIZES, **EXPERTS, num_local_experts=4),
        {"quant_method": "mxfp4"},
        _mxfp4,
        Mxfp4Config,
    ),
}  # fmt: skip


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        result: Tensor = model(input_ids=IDS).logits
    return result


def assert_streams_alike(lm: LM, streamed: LM) -> None:
    from saescope.engine.scan import scan
    from saescope.sources.prompts import texts

    sae = load_sae(tiny.save_sae(Path(lm.source).parent / "sae", layers=[1], d_model=64), 1)
    prompts = texts(tiny.TEXTS[:2])[0].prompts
    assert scan(lm, [sae], prompts) == scan(streamed, [sae], prompts)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")  # transformers' own
@pytest.mark.parametrize("kind", QUANTISED)
def test_dequantised_weights_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    config, settings, change, loading = QUANTISED[kind]
    model = quantise(save(tmp_path / "model", config), settings, change)
    stock = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=torch.float32,
        quantization_config=loading(dequantize=True),
        trust_remote_code=False,
    )
    lm = load_lm(model, dtype="float32")
    torch.testing.assert_close(logits(lm.whole), logits(stock.float().eval()))
    assert_streams_alike(lm, load_lm(model, dtype="float32", streamed=True))


def write_gguf(path: Path, state: State) -> Path:
    """A Qwen3 model as llama.cpp stores it, its matrices in 8 bits, with a tokenizer."""
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "model.layers": "blk",
    }  # fmt: skip
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(128)
    writer.add_value_length(128)
    writer.add_rope_freq_base(1e4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(300)
    _add_tokenizer(writer)
    for name, tensor in state.items():
        for long, short in names.items():
            name = name.replace(long, short)
        values = tensor.float().numpy()
        if tensor.ndim == 1:
            writer.add_tensor(name, values)
            continue
        packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    vocabulary = tiny.tokenizer().get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens += [f"[unused{n}]" for n in range(300 - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges(["Ġ t", "h e", "i n"])
    writer.add_eos_token_id(vocabulary["<|endoftext|>"])


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    config = Qwen3Config(**SIZES | {"head_dim": 128})  # transformers reads no other from GGUF
    state = load_file(save(folder / "dense", config) / "model.safetensors")
    (folder / "model").mkdir()
    return write_gguf(folder / "model" / "tiny-q8_0.gguf", state)


def test_gguf_file_or_its_folder_is_a_model(gguf_file: Path) -> None:
    stock = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent,
        gguf_file=gguf_file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
    ).eval()
    for ref in (gguf_file, gguf_file.parent):
        lm = load_lm(ref, dtype="float32")
        torch.testing.assert_close(logits(lm.whole), logits(stock), rtol=0, atol=0)
        assert lm.spec.n_layers == 2
        assert lm.tokenizer("the")["input_ids"] == tiny.tokenizer()("the")["input_ids"]
    assert lm.source == str(gguf_file.parent)
    assert load_lm(gguf_file, [0]).source == str(gguf_file)


def test_several_gguf_files_in_a_folder_must_be_told_apart(gguf_file: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(gguf_file.read_bytes())
    with pytest.raises(SourceError, match=r"holds 2 GGUF files: name one, such as .*a\.gguf"):
        load_lm(tmp_path)
    assert load_lm(tmp_path / "b.gguf", [0]).spec.n_layers == 2


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 60, b"no"])
def test_damaged_gguf_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(SourceError, match=r"bad\.gguf") as error:
        load_lm(tmp_path / "bad.gguf")
    assert "\n" not in str(error.value)


def test_other_methods_are_refused_by_name(tmp_path: Path) -> None:
    model = quantise(
        save(tmp_path / "model", Qwen3Config(**SIZES)),
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
        lambda name, tensor: {name: tensor},
    )
    with pytest.raises(SourceError, match=r"is quantised \(gptq\), which is not supported"):
        load_lm(model)


def test_weight_without_its_scale_is_refused(tmp_path: Path) -> None:
    model = quantise(
        save(tmp_path / "model", Qwen3Config(**SIZES)),
        FP8,
        lambda name, tensor: dict(list(_fp8(name, tensor).items())[:1]),
    )
    with pytest.raises(SourceError, match="is stored as float8_e4m3fn, which needs scales"):
        load_lm(model)


def test_quantised_checkpoint_cannot_be_baked(tmp_path: Path) -> None:
    model = quantise(save(tmp_path / "model", Qwen3Config(**SIZES)), FP8, _fp8)
    sae = load_sae(tiny.save_sae(tmp_path / "sae", layers=[1], d_model=64), 1, decoder=True)
    with pytest.raises(SourceError, match=r"is quantised \(fp8\), so its tensors cannot be edited"):
        bake(model, [sae], [Edit("1/3", "project")], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert np.isfinite(logits(load_lm(model).whole).float().numpy()).all()
