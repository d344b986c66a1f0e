"""Tiny random models, tokenizers and SAEs in the real formats, made in milliseconds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

TEXTS = [
    "The capital of France is",
    "import numpy as np",
    "今日はいい天気だ",
    "def add(a, b):\n    return a + b",
    "मैं घर जा रहा हूँ",
    "x",
    "Gaur eguraldi ona dago eta hondartzara goaz",
]


def tokenizer(
    merges: Sequence[tuple[str, str]] = (("Ġ", "t"), ("h", "e"), ("i", "n")),
) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges; no BOS, like Qwen's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {
        token: n
        for n, token in enumerate([*alphabet, *(a + b for a, b in merges), "<|endoftext|>"])
    }
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")


def save_model(
    folder: Path,
    *,
    layers: int = 3,
    d_model: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    max_length: int = 128,
    tok: PreTrainedTokenizerFast | None = None,
    seed: int = 0,
) -> Path:
    """A random Qwen3 checkpoint with its tokenizer; weights large enough that layers matter."""
    tok = tok or tokenizer()
    config = Qwen3Config(
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=8,
        vocab_size=len(tok) + 3,
        max_position_embeddings=max_length,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    torch.manual_seed(seed)
    Qwen3ForCausalLM(config).to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    tok.save_pretrained(folder)
    return folder


def sae_tensors(d_model: int = 32, d_sae: int = 256, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of one layer, in Qwen-Scope's names and orientation."""
    random = torch.Generator().manual_seed(seed)
    return {
        "W_enc": torch.randn(d_sae, d_model, generator=random) / d_model**0.5,
        "b_enc": 0.1 * torch.randn(d_sae, generator=random),
        "W_dec": torch.nn.functional.normalize(
            torch.randn(d_model, d_sae, generator=random), dim=0
        ),
        "b_dec": 0.1 * torch.randn(d_model, generator=random),
    }


def save_sae(
    folder: Path, layers: Sequence[int] = (0, 1, 2), k: int | None = 8, **sizes: Any
) -> Path:
    """A folder of `layer{n}.sae.pt`; k in cfg.json unless it is None."""
    folder.mkdir(parents=True, exist_ok=True)
    for layer in layers:
        torch.save(sae_tensors(seed=layer, **sizes), folder / f"layer{layer}.sae.pt")
    if k is not None:
        (folder / "cfg.json").write_text(json.dumps({"k": k}))
    return folder


def save_saelens(
    folder: Path,
    layers: Sequence[int] = (0, 1, 2),
    kind: str = "jumprelu",
    settings: Mapping[str, Any] | None = None,
    **sizes: Any,
) -> Path:
    """SAELens' files, one folder per layer, with features as columns of W_enc."""
    for layer in layers:
        sae_folder = folder / f"blocks.{layer}.hook_resid_post"
        sae_folder.mkdir(parents=True, exist_ok=True)
        state = sae_tensors(seed=layer, **sizes)
        state |= {"W_enc": state["W_enc"].T.contiguous(), "W_dec": state["W_dec"].T.contiguous()}
        if kind == "jumprelu":
            state["threshold"] = torch.full_like(state["b_enc"], 1.0)
        save_file(state, sae_folder / "sae_weights.safetensors")
        d_sae, d_model = state["W_dec"].shape
        about = {"hook_name": sae_folder.name, "model_name": "tiny", "sae_lens_version": "6.54.12"}
        config = {
            "architecture": kind,
            "d_in": d_model,
            "d_sae": d_sae,
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "metadata": about,
        }
        (sae_folder / "cfg.json").write_text(json.dumps(config | dict(settings or {})))
    return folder
