"""Every architecture equals transformers' whole model at every layer; wrong checkpoints fail."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SiglipVisionConfig,
    T5Config,
)

import reference
import tiny
from saescope.engine.batches import divide_into_batches, lay_out, plan_batches
from saescope.engine.forward import compute_residuals
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.engine.pages import mapped_pages
from saescope.engine.residual import capture
from saescope.engine.scan import scan
from saescope.engine.tokens import tokenize
from saescope.errors import SourceError
from saescope.sources.prompts import texts

LAYERS = 4
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
HEADS = {"head_dim": 8}
WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
HYBRID = {
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
QWEN_EYE = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
}
GEMMA_EYE = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@dataclass(frozen=True)
class Kind:
    """A class of transformers, its config, and whether several prompts may share a row."""

    model: type[PreTrainedModel]
    config: PreTrainedConfig
    packs: bool = True


KINDS = {
    "qwen3": Kind(Qwen3ForCausalLM, Qwen3Config(**SIZES, **HEADS)),
    "qwen3 moe": Kind(
        Qwen3MoeForCausalLM, Qwen3MoeConfig(**SIZES, **HEADS, **EXPERTS, mlp_only_layers=[2])
    ),
    "qwen3.5": Kind(Qwen3_5ForCausalLM, Qwen3_5TextConfig(**SIZES, **HYBRID), packs=False),
    "qwen3.5 with images": Kind(
        Qwen3_5ForConditionalGeneration,
        Qwen3_5Config(text_config={**SIZES, **HYBRID}, vision_config=QWEN_EYE),
        packs=False,
    ),
    "qwen3.5 moe": Kind(
        Qwen3_5MoeForCausalLM,
        Qwen3_5MoeTextConfig(**SIZES, **HYBRID, **EXPERTS, shared_expert_intermediate_size=16),
        packs=False,
    ),
    "llama": Kind(LlamaForCausalLM, LlamaConfig(**SIZES)),
    "gemma2": Kind(Gemma2ForCausalLM, Gemma2Config(**SIZES, **HEADS, **WINDOW)),
    "gemma3": Kind(Gemma3ForCausalLM, Gemma3TextConfig(**SIZES, **HEADS, **WINDOW)),
    "gemma3 with images": Kind(
        Gemma3ForConditionalGeneration,
        Gemma3Config(
            text_config={**SIZES, **HEADS, **WINDOW}, vision_config=GEMMA_EYE, mm_tokens_per_image=4
        ),
    ),
    "mistral": Kind(MistralForCausalLM, MistralConfig(**SIZES, sliding_window=8)),
    "gpt2": Kind(
        GPT2LMHeadModel,
        GPT2Config(
            vocab_size=300,
            n_embd=32,
            n_layer=LAYERS,
            n_head=4,
            n_positions=128,
            initializer_range=0.1,
            bos_token_id=None,
            eos_token_id=None,
            scale_attn_by_inverse_layer_idx=True,
        ),
    ),
    "phi": Kind(PhiForCausalLM, PhiConfig(**SIZES)),
    "phi3": Kind(Phi3ForCausalLM, Phi3Config(**SIZES)),
}
MOE = ("qwen3 moe", "qwen3.5 moe")


def save(
    name: str,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "20KB",
    **changes: Any,
) -> Path:
    """A random checkpoint of this kind with its tokenizer."""
    torch.manual_seed(0)
    config = type(KINDS[name].config).from_dict(KINDS[name].config.to_dict() | changes)
    KINDS[name].model(config).to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are so small here that waiting for a second thread takes most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(lm: LM) -> list[list[int]]:
    return tokenize(lm, texts(tiny.TEXTS)[0].prompts)


def whole_residuals(name: str, folder: Path, prompts: list[list[int]]) -> Iterator[list[Tensor]]:
    """Every block's output for each prompt alone, by the whole model in float32."""
    whole = (
        KINDS[name]
        .model.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        .eval()
    )
    seen: list[Tensor] = []
    for block in reference.blocks(whole):
        block.register_forward_hook(lambda _m, _i, out: seen.append(reference.tensor(out)))
    with torch.inference_mode():
        for row in prompts:
            seen.clear()
            whole(input_ids=torch.tensor([row]))
            yield list(seen)


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["float32, sharded", "bfloat16, one file"])
@pytest.mark.parametrize("name", KINDS)
def test_every_layer_equals_the_whole_model(name: str, stored: str, tmp_path: Path) -> None:
    sharded = stored == "float32, sharded"
    load_options = {
        "dtype": torch.float32 if sharded else torch.bfloat16,
        "shard_size": "20KB" if sharded else "1GB",
    }
    model = save(name, tmp_path / "model", **load_options)
    assert (model / "model.safetensors.index.json").exists() == sharded
    for last in (1, LAYERS - 1):
        lm = load_lm(model, [last], dtype="float32")
        prompts = rows(lm)
        for row, expected in zip(prompts, whole_residuals(name, model, prompts), strict=True):
            with torch.inference_mode(), capture(lm, range(last + 1)) as resid:
                lm.model(input_ids=torch.tensor([row]), use_cache=False)
            assert len(expected) == LAYERS
            assert all(distance(resid[layer], expected[layer]) <= 1e-5 for layer in range(last + 1))


@pytest.mark.parametrize("name", KINDS)
def test_batches_equal_single_prompts(name: str, tmp_path: Path) -> None:
    model = save(name, tmp_path / "model")
    lm = load_lm(model, [LAYERS - 1])
    assert lm.packs_prompts == KINDS[name].packs
    expected = [resids[-1][0] for resids in whole_residuals(name, model, rows(lm))]
    prompts = rows(lm)
    for packs, budget in ((lm.packs_prompts, 10_000), (False, 120)):
        batches = divide_into_batches([len(row) for row in prompts], budget, packed=packs)
        assert any(len(row) > 1 for batch in batches for row in batch) == packs
        for batch in batches:
            tokens, order = (
                lay_out(batch, prompts, lm.device),
                [prompt for row in batch for prompt in row],
            )
            with torch.inference_mode(), capture(lm, [LAYERS - 1]) as resid:
                lm.model(input_ids=tokens.ids, position_ids=tokens.positions, use_cache=False)
            by_prompt = resid[LAYERS - 1][tokens.mask].split([len(prompts[p]) for p in order])
            assert all(
                distance(prompt_resid, expected[p]) <= 2e-5
                for p, prompt_resid in zip(order, by_prompt, strict=True)
            )


@pytest.mark.parametrize("name", KINDS)
def test_scan_equals_plain_transformers(name: str, tmp_path: Path) -> None:
    model, sae = save(name, tmp_path / "model"), tiny.save_sae(tmp_path / "sae", layers=[2])
    result = scan(load_lm(model, [2]), [load_sae(sae, 2)], texts(tiny.TEXTS)[0].prompts, n_top=8)
    for prompt, ref in zip(
        result.prompts, reference.features(model, sae, 2, 8, tiny.TEXTS), strict=True
    ):
        assert [token.id for token in prompt.tokens] == ref.ids
        norms = torch.tensor([token.norm[2] for token in prompt.tokens])
        torch.testing.assert_close(norms, ref.norms, atol=1e-4, rtol=1e-4)
        for token, acts in zip(prompt.tokens, ref.acts, strict=True):
            found_acts = torch.tensor(
                [act for _, act in token.features[2]] + [0.0] * (8 - len(token.features[2]))
            )
            torch.testing.assert_close(found_acts, acts, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_only_needed_shards_are_opened(name: str, tmp_path: Path) -> None:
    model = save(name, tmp_path / "model")
    weights = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    text = r"^(?!.*vis).*\b((layers|h)\.[01]\.|embed_tokens\.|wte\.|wpe\.)"
    needed = {shard for tensor, shard in weights.items() if re.search(text, tensor)}
    unneeded = set(weights.values()) - needed
    assert len(unneeded) >= 2
    for shard in unneeded:
        (model / shard).unlink()
    lm = load_lm(model, [1])
    assert len(lm.blocks) == 2
    assert lm.spec.n_layers == LAYERS


# --- names


def _rename(model: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    state = change(load_file(model / "model.safetensors"))
    save_file(
        {n: t.contiguous() for n, t in state.items()},
        model / "model.safetensors",
        metadata={"format": "pt"},
    )
    return model


PROJECTIONS = {"gate_up_proj": ["gate_proj", "up_proj"], "down_proj": ["down_proj"]}


def _one_by_one(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Experts each in tensors of their own."""
    single = {}
    for name, tensor in state.items():
        owner, _, kind = name.rpartition(".")
        projections = PROJECTIONS.get(kind)
        if projections is None:
            single[name] = tensor
            continue
        for n, expert in enumerate(tensor):
            for projection, rows in zip(projections, expert.chunk(len(projections)), strict=True):
                single[f"{owner}.{n}.{projection}.weight"] = rows.clone()
    return single


def _together(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Experts stacked, as the modules have them."""
    stacked = {
        name: tensor for name, tensor in state.items() if not re.search(r"\.experts\.\d", name)
    }
    for owner in sorted(
        {name.split(".experts.")[0] for name in state if re.search(r"\.experts\.\d", name)}
    ):
        experts = [
            {
                part: state[f"{owner}.experts.{n}.{part}.weight"]
                for part in ("gate_proj", "up_proj", "down_proj")
            }
            for n in range(EXPERTS["num_experts"])
        ]
        stacked[f"{owner}.experts.gate_up_proj"] = torch.stack(
            [torch.cat([e["gate_proj"], e["up_proj"]]) for e in experts]
        )
        stacked[f"{owner}.experts.down_proj"] = torch.stack([e["down_proj"] for e in experts])
    return stacked


@pytest.mark.parametrize("name", MOE)
def test_experts_stored_either_way_are_the_same(name: str, tmp_path: Path) -> None:
    folders = [save(name, tmp_path / way, shard_size="1GB") for way in ("single", "stacked")]
    single, stacked = (
        _rename(folders[0], lambda s: _one_by_one(_together(s))),
        _rename(folders[1], _together),
    )
    names = [load_file(folder / "model.safetensors").keys() for folder in (single, stacked)]
    assert any(n.endswith("experts.3.up_proj.weight") for n in names[0])
    assert any(n.endswith("experts.gate_up_proj") for n in names[1])
    states = [load_lm(folder, [3]).model.state_dict() for folder in (single, stacked)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which memory is a file's")
def test_stacked_experts_stay_mapped_and_single_ones_are_copies(tmp_path: Path) -> None:
    single = save("qwen3 moe", tmp_path / "single", shard_size="1GB", moe_intermediate_size=64)
    stacked = _rename(
        save("qwen3 moe", tmp_path / "stacked", shard_size="1GB", moe_intermediate_size=64),
        _together,
    )
    mapped = [
        bool(mapped_pages([load_lm(m, [0]).blocks[0].mlp.experts.gate_up_proj]))
        for m in (single, stacked)
    ]
    assert mapped == [False, True]


LAST_EXPERT = r"layers\.1\.mlp\.experts\.3\.up_proj\.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda t: None,
            rf"has no tensor model\.{LAST_EXPERT} \(1 missing\).*qwen3_moe",
        ),
        (
            lambda t: t.T,
            rf"{LAST_EXPERT} has shape \(32, 16\), its config says \(16, 32\)",
        ),
        (
            lambda t: t[:, :8],
            rf"{LAST_EXPERT} has shape \(16, 8\), its config says \(16, 32\)",
        ),
    ],
)
def test_damaged_expert_is_named(
    change: Callable[[Tensor], Tensor | None], reason: str, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    model = _rename(
        save("qwen3 moe", tmp_path / "model", shard_size="1GB"),
        lambda s: {
            n: t for n, old in s.items() if (t := change(old) if n == name else old) is not None
        },
    )
    with pytest.raises(SourceError, match=reason):
        load_lm(model, [1])


def _bare_gpt2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the first checkpoints had it: no prefix, and causal masks among the weights."""
    masks = {f"h.{n}.attn.bias": torch.ones(1, 1, 128, 128) for n in range(LAYERS)}
    return masks | {name.removeprefix("transformer."): tensor for name, tensor in state.items()}


def _other_models(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With a head that drafts, whose block is named like a block of the decoder."""
    return {
        f"mtp.{n.removeprefix('model.')}": t * 2 for n, t in state.items() if "layers.0." in n
    } | state


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gpt2", _bare_gpt2),
        ("qwen3.5", _other_models),
        (
            "qwen3.5",
            lambda s: {n.replace("model.", "model.language_model."): t for n, t in s.items()},
        ),
        (
            "gemma3 with images",
            lambda s: {re.sub("^language_model.model", "model.language_model", n): s[n] for n in s},
        ),
        ("llama", lambda s: {n.removeprefix("model."): t for n, t in s.items()}),
    ],
)
def test_names_of_other_checkpoints(name: str, change: Any, tmp_path: Path) -> None:
    model = save(name, tmp_path / "model", shard_size="1GB")
    before = load_lm(model, [2]).model.state_dict()
    after = load_lm(_rename(model, change), [2]).model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_dtype_of_a_multimodal_config_covers_all_parts(tmp_path: Path) -> None:
    model = save("gemma3 with images", tmp_path / "model", dtype=torch.bfloat16)
    config = json.loads((model / "config.json").read_text())
    config["text_config"].pop("dtype", None)
    (model / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert load_lm(model, [0]).dtype == torch.bfloat16


# --- refusals


REFUSED = {
    "encoder and decoder": (T5Config(), "'t5' is not supported: it is an encoder and a decoder"),
    "mamba": (MambaConfig(), "'mamba' is not supported: .* takes no position_ids"),
    "mamba2": (Mamba2Config(), "'mamba2' is not supported: .* takes no position_ids"),
    "images only": (
        SiglipVisionConfig(),
        "'siglip_vision_model' is not supported: it is no causal language model",
    ),
    "encoder": (
        BertConfig(),
        "'bert' is not supported: expected one final norm beside the blocks, found 0",
    ),
    "attention both ways": (
        Gemma3TextConfig(**SIZES, use_bidirectional_attention=True),
        "'gemma3_text' is not supported: its attention looks to the right",
    ),
    "not causal": (
        LlamaConfig(**SIZES, is_causal=False),
        "'llama' is not supported: its attention looks to the right",
    ),
    "quantised": (
        LlamaConfig(**SIZES, quantization_config={"quant_method": "gptq", "bits": 4}),
        r"is quantised \(gptq\), which is not supported",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_architectures_are_refused(case: str, tmp_path: Path) -> None:
    config, reason = REFUSED[case]
    config.save_pretrained(tmp_path)
    with pytest.raises(SourceError, match=reason) as error:
        load_lm(tmp_path, [0])
    assert "\n" not in str(error.value)


def test_unknown_model_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "hyperllama", "num_hidden_layers": 2})
    )
    with pytest.raises(SourceError, match="hyperllama"):
        load_lm(tmp_path, [0])


class DoctoredConfig(LlamaConfig):
    """Llama, but for what `doctor` says."""

    model_type = "doctored"
    doctor: str = "nothing"


class DoctoredModel(LlamaModel):
    """A decoder that does something to the residual after its second block."""

    config_class = DoctoredConfig

    def __init__(self, config: DoctoredConfig) -> None:
        super().__init__(config)
        if config.doctor == "buffer":
            self.register_buffer("offsets", torch.arange(4.0), persistent=False)
        if config.doctor == "lists":
            self.more = nn.ModuleList(nn.Identity() for _ in range(config.num_hidden_layers))
        if config.doctor == "no norm":
            self.last = self.norm
            del self.norm

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None = None, use_cache: bool = False
    ) -> None:
        resid = self.embed_tokens(input_ids)
        if self.config.doctor == "norm first":
            resid = self.norm(resid)
        angles = self.rotary_emb(resid, torch.arange(input_ids.shape[1])[None])
        for n, block in enumerate(self.layers):
            resid = block(resid, position_embeddings=angles)
            if n == 1 and self.config.doctor == "scaled":
                resid = resid * 1.001
            if n == 1 and self.config.doctor == "in place":
                resid[..., 0] += 1
            if n == 1 and self.config.doctor == "several streams":
                resid = resid[None]


class DoctoredForCausalLM(LlamaForCausalLM):
    """A causal LM around the doctored decoder."""

    config_class = DoctoredConfig

    def __init__(self, config: DoctoredConfig) -> None:
        super().__init__(config)
        self.model = DoctoredModel(config)
        self.post_init()


AutoConfig.register("doctored", DoctoredConfig)
AutoModelForCausalLM.register(DoctoredConfig, DoctoredForCausalLM)


def doctored(folder: Path, how: str) -> Path:
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(folder)
    DoctoredConfig(**SIZES, doctor=how).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("how", ["scaled", "in place", "several streams"])
def test_residual_changed_between_blocks_is_refused(how: str, tmp_path: Path) -> None:
    lm = load_lm(doctored(tmp_path, how), [3])
    work = plan_batches(lm, texts(tiny.TEXTS)[0].prompts)
    for _ in range(2):
        message = (
            r"DoctoredModel of .* not supported: the residual is changed between layers 1 and 2"
        )
        with pytest.raises(SourceError, match=message):
            next(compute_residuals(lm, [3], work))
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in lm.blocks)


@pytest.mark.parametrize("streamed", [False, True])
def test_final_norm_that_also_runs_before_the_blocks_is_refused(
    streamed: bool, tmp_path: Path
) -> None:
    lm = load_lm(doctored(tmp_path, "norm first"), [3], streamed=streamed)
    work = plan_batches(lm, texts(tiny.TEXTS)[0].prompts)
    with pytest.raises(SourceError, match="its final norm also runs before layer 0"):
        next(compute_residuals(lm, [3], work))


def test_residual_is_checked_in_the_first_pass_alone(tmp_path: Path) -> None:
    lm = load_lm(doctored(tmp_path, "nothing"), [3])
    work = plan_batches(lm, texts(tiny.TEXTS)[0].prompts, 64)
    hooks = []
    for _ in compute_residuals(lm, [3], work):
        with capture(lm, [3]):
            hooks.append(sum(len(block._forward_pre_hooks) for block in lm.blocks))
    assert len(hooks) > 1
    assert not any(hooks)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("buffer", "'doctored' is not supported: it does not say how the buffer offsets"),
        ("lists", "'doctored' is not supported: expected one ModuleList of 4 blocks, found 2"),
        (
            "no norm",
            "'doctored' is not supported: expected one final norm .*, found 0",
        ),
    ],
)
def test_what_cannot_be_found_or_computed_is_refused(how: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=reason):
        load_lm(doctored(tmp_path, how), [3])


# --- tokenizers and lengths


def test_bos_is_what_the_tokenizer_adds(tmp_path: Path) -> None:
    model = save("llama", tmp_path / "model")
    plain = rows(load_lm(model, [0]))
    tok = tiny.tokenizer()
    bos = tok.convert_tokens_to_ids("<|endoftext|>")
    tok._tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    tok.save_pretrained(model)
    assert rows(load_lm(model, [0])) == [[bos, *row] for row in plain]


def test_prompts_stay_where_frequencies_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 64,
        **factors,
    }
    model = save(
        "phi3", tmp_path / "model", rope_parameters=rope, original_max_position_embeddings=64
    )
    lm = load_lm(model, [3])
    assert lm.max_length == 64
    prompts = rows(lm)
    for row, expected in zip(prompts, whole_residuals("phi3", model, prompts), strict=True):
        with torch.inference_mode(), capture(lm, [3]) as resid:
            lm.model(input_ids=torch.tensor([row]), use_cache=False)
        assert distance(resid[3], expected[3]) <= 1e-5
