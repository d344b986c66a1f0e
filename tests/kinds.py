"""Tiny random checkpoints of the architectures that the table in docs/architectures.md lists."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

import tiny

D_MODEL, LAYERS = 32, 4
Values = Mapping[str, Any]
_COMMON: Values = {
    "vocab_size": 264,
    "hidden_size": D_MODEL,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 259,
    "pad_token_id": None,
}
_SIZES: Values = {**_COMMON, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
_TIED: Values = {**_SIZES, "tie_word_embeddings": True}
_SLIDING: Values = {
    "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
_LINEAR: Values = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
_EXPERTS: Values = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "norm_topk_prob": True,
}  # fmt: skip
_SHARED: Values = {
    "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_SHARED_QWEN: Values = {"decoder_sparse_step": 1, "shared_expert_intermediate_size": 16}
_LATENT: Values = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip
_MAMBA: Values = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1,
}  # fmt: skip
_GEMMA4: Values = {
    **_SLIDING, "global_head_dim": 8, "vocab_size_per_layer_input": 264,
    "hidden_size_per_layer_input": 4,
}  # fmt: skip
_VISION: Values = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip
_QWEN_VISION: Values = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4,
    "out_hidden_size": D_MODEL, "spatial_merge_size": 1, "temporal_patch_size": 1,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
}  # fmt: skip
_QWEN_IMAGES: Values = {
    "image_token_id": 260, "video_token_id": 261, "vision_start_token_id": 262,
    "vision_end_token_id": 263,
}  # fmt: skip
_MROPE: Values = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
}


# As transformers' defaults, with a context that these 128 positions extend.
_EXTENDED: Values = {"rope_theta": 1e4, "original_max_position_embeddings": 64}
_LLAMA3: Values = {
    "rope_parameters": {
        **_EXTENDED, "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
}  # fmt: skip
_YARN: Values = {
    "rope_parameters": {
        **_EXTENDED, "rope_type": "yarn", "factor": 2.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "truncate": False,
    }
}  # fmt: skip
_YARN_BETA: Values = {
    "rope_parameters": {
        **_YARN["rope_parameters"], "mscale": 1.0, "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """An architecture: transformers' name of its config, and the values of a tiny one."""

    model_type: str
    values: Values = field(default_factory=dict)


DENSE = {
    "Qwen2 and 2.5": Kind("qwen2", _SIZES),
    "Qwen3": Kind("qwen3", _TIED),
    "Llama": Kind("llama", _SIZES),
    "Mistral": Kind("mistral", {**_SIZES, "sliding_window": 8}),
    "Gemma": Kind("gemma", _TIED),
    "Gemma 2": Kind("gemma2", {**_TIED, **_SLIDING}),
    "Gemma 3": Kind("gemma3_text", {**_TIED, **_SLIDING}),
    "Gemma 4": Kind("gemma4_text", {**_TIED, **_GEMMA4}),
    "VaultGemma": Kind("vaultgemma", {**_TIED, **_SLIDING}),
    "Gemma 3n": Kind(
        "gemma3n_text",
        {
            **_TIED,
            **_SLIDING,
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": 264,
            "num_kv_shared_layers": 0,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.0] * LAYERS,
        },
    ),
    "GPT-2": Kind("gpt2", {**_COMMON, "tie_word_embeddings": True}),
    "GPT-J": Kind("gptj", {**_COMMON, "rotary_dim": 4}),
    "Pythia (GPT-NeoX)": Kind("gpt_neox", _SIZES),
    "OPT": Kind("opt", {**_COMMON, "ffn_dim": 64, "word_embed_proj_dim": D_MODEL}),
    "Bloom": Kind("bloom", {**_COMMON, "n_layer": LAYERS, "n_head": 4}),
    "Falcon": Kind("falcon", {**_COMMON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "Phi": Kind("phi", _SIZES),
    "Phi-3 and 4": Kind("phi3", _SIZES),
    "OLMo": Kind("olmo", _SIZES),
    "OLMo 2": Kind("olmo2", _SIZES),
    "OLMo 3": Kind("olmo3", {**_SIZES, **_SLIDING}),
    "Granite": Kind(
        "granite",
        {**_SIZES, "residual_multiplier": 0.3, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    ),
    "GLM-4": Kind("glm4", _SIZES),
    "Apertus": Kind("apertus", {**_SIZES, **_LLAMA3}),
    "SmolLM3": Kind("smollm3", _SIZES),
    "Command R (Cohere)": Kind("cohere", _TIED),
    "StarCoder2": Kind("starcoder2", _SIZES),
    "StableLM": Kind("stablelm", _SIZES),
    "EXAONE 4": Kind("exaone4", {**_SIZES, **_SLIDING}),
    "nanochat": Kind("nanochat", _SIZES),
}
MIXED = {
    "Qwen3.5": Kind("qwen3_5_text", {**_SIZES, **_LINEAR}),
    "Qwen3.5-MoE": Kind("qwen3_5_moe_text", {**_SIZES, **_LINEAR, **_EXPERTS, **_SHARED_QWEN}),
    "Qwen3-Next": Kind("qwen3_next", {**_SIZES, **_LINEAR, **_EXPERTS, **_SHARED_QWEN}),
    "Qwen3-MoE": Kind("qwen3_moe", {**_SIZES, **_EXPERTS, "mlp_only_layers": [2]}),
    "Mixtral": Kind("mixtral", {**_SIZES, **_EXPERTS}),
    "OLMoE": Kind("olmoe", {**_SIZES, **_EXPERTS}),
    "GraniteMoE": Kind("granitemoe", {**_SIZES, **_EXPERTS, "residual_multiplier": 0.3}),
    "DeepSeek-V3": Kind("deepseek_v3", {**_SIZES, **_EXPERTS, **_SHARED, **_LATENT}),
    "GLM-4.5 (GLM-4-MoE)": Kind("glm4_moe", {**_SIZES, **_EXPERTS, **_SHARED}),
    "Llama 4": Kind(
        "llama4_text",
        {**_SIZES, **_EXPERTS, "intermediate_size_mlp": 64, "attention_chunk_size": 8},
    ),
    "LFM2": Kind("lfm2", {**_SIZES, "layer_types": ["conv", "full_attention"] * 2}),
    "Granite 4": Kind(
        "granitemoehybrid",
        {
            **_SIZES,
            **_EXPERTS,
            **_MAMBA,
            "layer_types": ["mamba", "attention"] * 2,
            "shared_intermediate_size": 32,
            "residual_multiplier": 0.3,
        },
    ),
    "Kimi Linear": Kind(
        "kimi_linear",
        {
            **_SIZES,
            **_EXPERTS,
            **_SHARED,
            **_LATENT,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_num_heads": 4,
            "linear_head_dim": 8,
        },
    ),
    "RecurrentGemma": Kind("recurrent_gemma", _TIED),
    "gpt-oss": Kind(
        "gpt_oss", {**_SIZES, **_EXPERTS, **_SLIDING, **_YARN, "intermediate_size": D_MODEL}
    ),
    "Qwen3.5 with images": Kind(
        "qwen3_5",
        {"text_config": {**_SIZES, **_LINEAR}, "vision_config": _QWEN_VISION, **_QWEN_IMAGES},
    ),
    "Qwen3-VL": Kind(
        "qwen3_vl",
        {"text_config": {**_SIZES, **_MROPE}, "vision_config": _QWEN_VISION, **_QWEN_IMAGES},
    ),
    "Qwen2.5-VL": Kind(
        "qwen2_5_vl",
        {
            "text_config": {**_SIZES, **_MROPE},
            "vision_config": {**_QWEN_VISION, "embed_dim": 16},
            **_QWEN_IMAGES,
        },
    ),
    "Llama 4 with images": Kind(
        "llama4",
        {
            "text_config": {
                **_SIZES,
                **_EXPERTS,
                "intermediate_size_mlp": 64,
                "attention_chunk_size": 8,
            },
            "vision_config": {
                **_VISION,
                "vision_output_dim": 16,
                "projector_input_dim": 16,
                "projector_output_dim": 16,
            },
            "image_token_index": 260,
            "boi_token_index": 261,
            "eoi_token_index": 262,
        },
    ),
    "Idefics3": Kind(
        "idefics3",
        {
            "text_config": {**_SIZES, "model_type": "llama"},
            "vision_config": _VISION,
            "image_token_id": 260,
        },
    ),
    "Gemma 3 with images": Kind(
        "gemma3",
        {
            "text_config": {**_TIED, **_SLIDING},
            "vision_config": {**_VISION, "model_type": "siglip_vision_model"},
            "mm_tokens_per_image": 4,
            "image_token_index": 260,
            "boi_token_index": 261,
            "eoi_token_index": 262,
        },
    ),
    "Gemma 4 with images": Kind(
        "gemma4",
        {
            "text_config": {**_TIED, **_GEMMA4, "pad_token_id": 0},
            "vision_config": _VISION,
            "image_token_id": 260,
            "audio_token_id": 261,
            "boi_token_id": 262,
            "eoi_token_id": 263,
        },
    ),
    "Mistral3 with images": Kind(
        "mistral3",
        {
            "text_config": {**_SIZES, **_YARN_BETA, "model_type": "ministral3"},
            "vision_config": {**_VISION, "model_type": "pixtral", "head_dim": 8},
            "image_token_index": 260,
        },
    ),
    "LLaVA": Kind(
        "llava",
        {
            "text_config": {**_SIZES, "model_type": "llama"},
            "vision_config": {**_VISION, "model_type": "clip_vision_model"},
            "image_token_index": 260,
        },
    ),
    "InternVL": Kind(
        "internvl",
        {
            "text_config": {**_SIZES, "model_type": "qwen3"},
            "vision_config": {**_VISION, "image_size": [8, 8], "patch_size": [4, 4]},
            "image_token_id": 260,
        },
    ),
}
KINDS = {**DENSE, **MIXED}


def stock_class(kind: Kind) -> Any:
    """The class of transformers that opens such a checkpoint."""
    config = CONFIG_MAPPING[kind.model_type]
    if config in MODEL_FOR_CAUSAL_LM_MAPPING:
        return MODEL_FOR_CAUSAL_LM_MAPPING[config]
    return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[config]


def save(kind: Kind, folder: Path) -> Path:
    """A random checkpoint in which every layer, norm and bias matters, with its tokenizer."""
    torch.manual_seed(0)
    model = _published_class(kind)(CONFIG_MAPPING[kind.model_type](**kind.values))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.rand_like(parameter)
        elif parameter.std() < 0.15:
            parameter.data.normal_(std=0.15)
    stored = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in stored and buffer.is_floating_point():
            buffer += 0.1 * torch.rand_like(buffer)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def _published_class(kind: Kind) -> Any:
    """The class that such a checkpoint is written with: with images, if it has any."""
    config = CONFIG_MAPPING[kind.model_type]
    if config in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[config]
    return MODEL_FOR_CAUSAL_LM_MAPPING[config]
