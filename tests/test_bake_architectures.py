"""Bakes of every architecture, judged by transformers' own model on both folders.

every-write: no layer's output has a component along the direction. readers-above: where nothing
writes along it, the logits are the same for both signs of a component above the edit's layer.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import reference
import tiny
from saescope.control.baking.bake import bake
from saescope.control.baking.bake_result import BakeResult
from saescope.control.baking.settings import BakeSettings, Method
from saescope.control.edits import Edit
from saescope.engine.batches import plan_batches
from saescope.engine.forward import compute_residuals
from saescope.engine.lm import load_lm
from saescope.engine.load import load_sae
from saescope.errors import SaescopeError
from saescope.sources.directions import Direction
from saescope.sources.prompts import texts
from test_architectures import one_thread

pytestmark = pytest.mark.slow  # whole bakes, of many architectures

__all__ = ["one_thread"]

D_MODEL, LAYER = 32, 1
DIRECTION = np.random.default_rng(3).normal(size=D_MODEL)
EDIT = Edit(direction=Direction(LAYER, DIRECTION, "d"), op="project")
UNIT = torch.from_numpy(DIRECTION / np.linalg.norm(DIRECTION)).float()
NEUTRAL = texts(tiny.TEXTS)[0].prompts[:3]
IDS = torch.tensor([[5, 17, 80, 3, 200, 41, 7, 7, 130, 99, 250, 12]])
COMMON: dict[str, Any] = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")) | {
    "vocab_size": 300, "hidden_size": D_MODEL, "num_hidden_layers": 3, "num_attention_heads": 4,
    "initializer_range": 0.15, "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip
SIZES = COMMON | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "norm_topk_prob": True,
}  # fmt: skip
MLA = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip
SHARED = {"n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
SLIDING = {"sliding_window": 8}
GEMMA4 = {
    **SLIDING, "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "global_head_dim": 8, "vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 8,
}  # fmt: skip
OPT = {"ffn_dim": 64, "word_embed_proj_dim": D_MODEL}
GRANITE = {"residual_multiplier": 0.3, "embedding_multiplier": 3.0, "logits_scaling": 2.0}
SPARSE = {"decoder_sparse_step": 1, "shared_expert_intermediate_size": 16}
CONFIGS: dict[str, Mapping[str, Any]] = {
    "llama": SIZES,
    "olmo2": SIZES,
    "olmo3": SIZES | SLIDING,
    "gpt_neox": SIZES,
    "opt": COMMON | OPT,
    "mixtral": SIZES | EXPERTS,
    "granite": SIZES | GRANITE,
    "granitemoe": SIZES | EXPERTS | GRANITE,
    "deepseek_v3": SIZES | EXPERTS | MLA | SHARED,
    "glm4": SIZES,
    "glm4_moe": SIZES | EXPERTS | SHARED,
    "gpt_oss": SIZES | EXPERTS | SLIDING | {"intermediate_size": D_MODEL},
    "gemma3_text": SIZES | SLIDING,
    "gemma4_text": SIZES | GEMMA4,
    "apertus": SIZES,
    "vaultgemma": SIZES | SLIDING,
    "phi": SIZES,
    "falcon": COMMON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "qwen3_5_text": SIZES | LINEAR,
    "qwen3_next": SIZES | EXPERTS | LINEAR | SPARSE,
    "nanochat": SIZES,
    "cohere": SIZES,
    "starcoder2": SIZES,
    "gptj": COMMON | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "rotary_dim": 4},
    "exaone4": SIZES | SLIDING,
    "bloom": COMMON | {"n_layer": 3, "n_head": 4},
}
# Norms follow the writers, so weights project the direction of a write and not its size.
NORMED = ("olmo2", "olmo3", "glm4", "gemma3_text", "gemma4_text", "exaone4")
LAYER_NORMS = ("gpt_neox", "opt", "phi", "falcon", "cohere", "starcoder2", "gptj", "bloom")
REFUSED = ("nanochat", "bloom")  # a norm stands between the embedding and the residual


def save(kind: str, folder: Path) -> Path:
    """A random checkpoint whose norms, biases and buffers are not those it starts with."""
    torch.manual_seed(1)
    config = CONFIG_MAPPING[kind](**CONFIGS[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.rand_like(parameter)
        elif parameter.std() < 0.1 and "embed" not in name:
            parameter.data.normal_(std=0.15)
    for name, buffer in model.named_buffers():
        if "layer_scalar" in name:
            buffer.fill_(0.7)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def attempt(kind: str, method: Method, tmp_path: Path) -> BakeResult:
    model = save(kind, tmp_path / "model")
    # Past norms after the writers a bake of this random direction errs by more than the edit does.
    settings = BakeSettings(method=method, force=kind in NORMED)
    return bake(model, (), [EDIT], tmp_path / "out", settings, neutral=NEUTRAL)


def stock(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    ).eval()


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=IDS, use_cache=False).logits[0]
        return found


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_write_leaves_nothing_of_the_direction(kind: str, tmp_path: Path) -> None:
    if kind in REFUSED:
        with pytest.raises(SaescopeError, match=kind) as refusal:
            attempt(kind, "every-write", tmp_path)
        assert "\n" not in str(refusal.value)
        assert not (tmp_path / "out").exists()
        return
    result = attempt(kind, "every-write", tmp_path)
    assert result.exact == (kind not in NORMED)
    seen: list[Tensor] = []
    model = stock(tmp_path / "out")
    for block in reference.blocks(model):
        block.register_forward_hook(lambda _m, _i, out: seen.append(reference.tensor(out)))
    baked, plain = logits(model), logits(stock(tmp_path / "model"))
    assert max(float(((r @ UNIT).abs() / r.norm(dim=-1)).max()) for r in seen) < 1e-5
    assert (baked - plain).abs().max() > 1e-3
    assert result.kl_hook_baked is not None
    assert result.kl_base_baked is not None
    if result.exact:
        assert result.kl_hook_baked.largest < 1e-8 < result.kl_base_baked.mean


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind not in REFUSED])
def test_readers_above_do_not_see_the_direction(kind: str, tmp_path: Path) -> None:
    if kind in LAYER_NORMS:
        with pytest.raises(SaescopeError, match="its norms are not"):
            attempt(kind, "readers-above", tmp_path)
        return
    attempt(kind, "every-write", tmp_path)  # so that nothing above the layer writes along it
    settings = BakeSettings(method="readers-above")
    result = bake(tmp_path / "out", (), [EDIT], tmp_path / "both", settings, neutral=NEUTRAL)
    assert result.exact
    assert result.kl_hook_baked is not None
    assert result.kl_hook_baked.largest < 1e-8
    changes = []
    for folder in ("out", "both"):
        model = stock(tmp_path / folder)
        block = reference.blocks(model)[LAYER]
        outputs = []
        for sign in (1, -1):
            handle = block.register_forward_hook(partial(shifted, sign))
            outputs.append(logits(model))
            handle.remove()
        changes.append(float((outputs[0] - outputs[1]).abs().max()))
    assert changes[1] < 1e-4 < 1e-2 < changes[0]


def shifted(sign: int, _module: Any, _inputs: Any, output: Any) -> Any:
    """The residual with a component along the direction, of either sign and so of equal norm."""
    h = (output[0] if isinstance(output, tuple) else output) + sign * 3 * UNIT
    return (h, *output[1:]) if isinstance(output, tuple) else h


@pytest.mark.parametrize("kind", ["granite", "gpt_neox", "opt", "phi", "starcoder2", "falcon"])
def test_constants_arrive_in_the_residual_as_they_are(kind: str, tmp_path: Path) -> None:
    """Granite multiplies what blocks add by 0.3: its bias has to be so much larger."""
    model = save(kind, tmp_path / "model")
    edit = Edit(direction=Direction(LAYER, DIRECTION, "d"), op="add", strength=1.5)
    if kind == "falcon":
        with pytest.raises(SaescopeError, match="has no bias that could hold a constant"):
            bake(model, (), [edit], tmp_path / "out", neutral=NEUTRAL)
        return
    result = bake(model, (), [edit], tmp_path / "out", neutral=NEUTRAL)
    assert result.exact
    plain, baked = stock(model), stock(tmp_path / "out")
    vector = torch.from_numpy(1.5 * DIRECTION).float()

    def add(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + vector, *output[1:])
        return output + vector

    reference.blocks(plain)[LAYER].register_forward_hook(add)
    torch.testing.assert_close(logits(baked), logits(plain), atol=1e-4, rtol=1e-3)


def test_clamps_enter_a_scaled_embedding_as_they_are(tmp_path: Path) -> None:
    """Granite multiplies its embedding by 3 outside of it."""
    model, sae = save("granite", tmp_path / "model"), tiny.save_sae(tmp_path / "sae", layers=[1])
    edit = Edit("1/3", "readout_clamp", 2.0)
    loaded = load_sae(sae, 1)
    result = bake(model, [loaded], [edit], tmp_path / "out", neutral=NEUTRAL)
    assert result.exact
    seen: list[Tensor] = []
    baked = stock(tmp_path / "out")
    for block in reference.blocks(baked):
        block.register_forward_hook(lambda _m, _i, out: seen.append(reference.tensor(out)[0]))
    logits(baked)
    for resid in seen:
        z = loaded.pre_acts(resid)[:, 3]
        torch.testing.assert_close(z, torch.full_like(z, 2.0), atol=1e-4, rtol=0)


def test_weights_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    """A norm with a tiny γ makes weights before it huge, or those after it."""
    model = tiny.save_model(tmp_path / "model", dtype=torch.float16)
    state = load_file(model / "model.safetensors")
    state["model.layers.2.input_layernorm.weight"][0] = 1e-4
    state["model.layers.2.input_layernorm.weight"][1] = 60.0
    state["model.layers.2.self_attn.q_proj.weight"] *= 30
    save_file(state, model / "model.safetensors", {"format": "pt"})
    settings = BakeSettings(method="readers-above", measure=False)
    with pytest.raises(SaescopeError, match=r"more than float16 holds"):
        bake(model, (), [EDIT], tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_layers_that_share_keys_and_values_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "gemma4_text", SIZES | GEMMA4 | {"num_kv_shared_layers": 1})
    with pytest.raises(SaescopeError, match="its last 1 layers reuse keys and values") as refusal:
        attempt("gemma4_text", "every-write", tmp_path)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()
    lm = load_lm(tmp_path / "model", [2], streamed=True)
    with pytest.raises(SaescopeError, match="reuse keys and values"):
        list(compute_residuals(lm, [2], plan_batches(lm, NEUTRAL)))
