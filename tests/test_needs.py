"""`plan` and `--memory` describe every model as loading does, whatever its tensors are called."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from saescope.engine.contents import Contents
from saescope.engine.lm import load_lm
from saescope.engine.needs import ModelSizes, file_names, needed_parameters
from saescope.sources.files import open_files
from saescope.surfaces.cli import run

pytestmark = pytest.mark.slow

D = 32
SIZES: dict[str, Any] = {
    "hidden_size": D,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": D, "n_layer": 3, "n_head": 4},
    "gpt_neox": SIZES,
    "opt": SIZES | {"ffn_dim": 64, "word_embed_proj_dim": D},
    "mixtral": SIZES | EXPERTS,
}


@pytest.mark.parametrize("kind", KINDS)
def test_needed_parameters_are_those_that_are_loaded(kind: str, tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **KINDS[kind])
    folder = tmp_path / kind
    AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(
        folder, max_shard_size="20KB"
    )
    tokenizer.save_pretrained(folder)
    lm = load_lm(folder, [1])
    contents = Contents.open(open_files(str(folder)), torch.float32)
    needed = needed_parameters(contents, 1)
    prefix = contents.decoder_path
    loaded = {prefix + name: tensor for name, tensor in lm.model.state_dict().items()}
    assert needed.keys() == loaded.keys()
    sizes = ModelSizes(contents, 1, on_device=False)
    weights = sum(sizes.blocks(), sizes.embedding())
    assert weights.total == sum(tensor.nbytes for tensor in loaded.values())
    assert (weights.copied > 0) == (kind == "mixtral")  # experts stored one by one
    assert len(file_names(contents, 1)) < len(file_names(contents, 2))

    sae = tmp_path / "SAE-Res-Own-W1K-L0_8"
    tiny.save_sae(sae, layers=[1])
    asked = ["--model", str(folder), "--sae", str(sae), "--layers", "1", "--device", "cpu"]
    assert run(["plan", *asked]) == 0
    assert run(["plan", *asked, "--memory", "100MB"]) == 1
    assert run(["scan", "a text", *asked, "--memory", "100MB"]) == 2
    assert run(["scan", "a text", *asked, "--memory", "1GiB"]) == 0
