"""Reference SAEs of dictionary_learning and Llama Scope, written as their trainers save them."""

import json
from pathlib import Path
from typing import Any

import torch
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors.torch import save_file
from torch import Tensor

from reference_answers import (
    D_MODEL,
    D_SAE,
    Answer,
    Answers,
    K,
    answer,
    by_saelens,
    drawn,
    residuals,
    tensors,
)

THRESHOLD = 0.7  # of Llama Scope's JumpReLU


def dictionary_learning(out: Path) -> Answers:
    """`ae.pt` as its trainers save it; SAELens' loader answers, a formula for the ReLU classes."""
    weights, answers = tensors(60), {}
    linear = {
        "encoder.weight": weights["W_enc"].T.contiguous(),
        "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T.contiguous(),
    }
    trained = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.9)}
    states: dict[str, dict[str, Tensor]] = {
        "AutoEncoderTopK": {**linear, "b_dec": weights["b_dec"], **trained},
        "BatchTopKSAE": {**linear, "b_dec": weights["b_dec"], **trained},
        "MatryoshkaBatchTopKSAE": {**weights, **trained},
        "JumpReluAutoEncoder": weights,
        "GatedAutoEncoder": {
            "encoder.weight": linear["encoder.weight"],
            "decoder.weight": linear["decoder.weight"],
            "decoder_bias": weights["b_dec"],
            "r_mag": drawn(D_SAE, seed=71, scale=0.3),
            "gate_bias": drawn(D_SAE, seed=72, scale=0.3),
            "mag_bias": drawn(D_SAE, seed=73, scale=0.3),
        },
        "AutoEncoder": {**linear, "bias": weights["b_dec"]},
        "AutoEncoderNew": {**linear, "decoder.bias": weights["b_dec"]},
    }
    root = out / "dictionary_learning"
    for kind, state in states.items():
        folder = f"{kind}/resid_post_layer_6/trainer_0"
        save_dictionary(root / folder, kind, state)
        if kind.startswith("AutoEncoder") and kind != "AutoEncoderTopK":
            answers[f"dictionary_learning/{folder}"] = relu_by_formula(state, kind)
        else:
            sae = by_saelens(
                loaders.dictionary_learning_sae_huggingface_loader_1, "x/y", folder, root
            )
            answers[f"dictionary_learning/{folder}"] = answer(sae, 6)
    return answers


def save_dictionary(folder: Path, kind: str, state: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    torch.save(state, folder / "ae.pt")
    trainer = {
        "dict_class": kind,
        "activation_dim": D_MODEL,
        "dict_size": D_SAE,
        "layer": 6,
        "lm_name": "tiny",
        "k": K,
        "trainer_class": "Trainer",
        "submodule_name": "resid_post_layer_6",
    }
    buffer = {"d_submodule": D_MODEL, "io": "out", "n_ctxs": 1, "ctx_len": 128}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": buffer}))


def relu_by_formula(state: dict[str, Tensor], kind: str) -> Answer:
    """AutoEncoder scales decoder columns to length 1 when it loads; AutoEncoderNew does not."""
    centre = state["bias"] if kind == "AutoEncoder" else torch.zeros(D_MODEL)
    lengths = state["decoder.weight"].norm(dim=0) if kind == "AutoEncoder" else torch.ones(D_SAE)
    pre = (residuals() - centre) @ state["encoder.weight"].T + state["encoder.bias"]
    decoded = pre.relu() @ state["decoder.weight"].T + state.get("bias", state.get("decoder.bias"))
    return Answer(residuals(), pre.relu() * lengths, decoded, 6)


def llama_scope(out: Path) -> Answers:
    """OpenMOSS's formula answers; SAELens' loader too where decoder columns have length 1."""
    unit_columns = _llama_scope_case(out, 3, unit_columns=True, act_fn="jumprelu", average=9.0)
    topk = _llama_scope_case(out, 4, unit_columns=False, act_fn="topk", average=9.0)
    unscaled = _llama_scope_case(out, 5, unit_columns=False, act_fn="topk", average=0)
    return unit_columns | topk | unscaled


def _llama_scope_case(
    out: Path, layer: int, *, unit_columns: bool, act_fn: str, average: float
) -> Answers:
    """One SAE; `average` is the mean norm of the layer's residuals, 0 without scaling."""
    root = out / "llama_scope"
    name = f"Llama3_1-8B-Base-L{layer}R-8x"
    checkpoints = root / name / "checkpoints"
    checkpoints.mkdir(parents=True)
    weights = tensors(87 + layer)
    decoder = weights["W_dec"]
    if unit_columns:
        decoder = decoder / decoder.norm(dim=1, keepdim=True)
    state = {
        "encoder.weight": weights["W_enc"].T.contiguous(),
        "encoder.bias": weights["b_enc"],
        "decoder.weight": decoder.T.contiguous(),
        "decoder.bias": weights["b_dec"],
    }
    save_file(state, checkpoints / "final.safetensors")
    config = {
        "d_model": D_MODEL,
        "d_sae": D_SAE,
        "act_fn": act_fn,
        "jump_relu_threshold": THRESHOLD if average else 0.0,
        "top_k": K,
        "norm_activation": "dataset-wise" if average else "none",
        "use_decoder_bias": True,
        "dataset_average_activation_norm": {"in": average, "out": average} if average else None,
        "apply_decoder_bias_to_pre_encoder": not average,
        "sparsity_include_decoder_norm": True,
        "hook_point_in": f"blocks.{layer}.hook_resid_post",
        "hook_point_out": f"blocks.{layer}.hook_resid_post",
    }
    (root / name / "hyperparams.json").write_text(json.dumps(config))
    by_formula = openmoss(state, config, layer)
    if not unit_columns:
        return {f"llama_scope/{name}": by_formula}
    scale = D_MODEL**0.5 / average
    sae = by_saelens(loaders.llama_scope_sae_huggingface_loader, "x/y", name, root)
    sae.fold_activation_norm_scaling_factor(scale)
    # SAELens' config holds the threshold in bfloat16.
    sae.threshold.data = torch.full((D_SAE,), THRESHOLD * scale)
    saelens_answer = answer(sae, layer, 1 / scale)  # SAELens' unit is `scale` times ours
    torch.testing.assert_close(saelens_answer.acts, by_formula.acts, atol=1e-5, rtol=1e-5)
    return {f"llama_scope/{name}": saelens_answer}


def openmoss(state: dict[str, Tensor], config: dict[str, Any], layer: int) -> Answer:
    """The formula of OpenMOSS's loader of late 2024: scales first, then columns of length 1."""
    average = config["dataset_average_activation_norm"]
    scale = D_MODEL**0.5 / average["in"] if average else 1.0
    bias, centre = state["encoder.bias"] / scale, state["decoder.bias"] / scale
    lengths = state["decoder.weight"].norm(dim=0)
    resid = residuals()
    if config["apply_decoder_bias_to_pre_encoder"]:
        resid = resid - centre
    pre = (resid @ state["encoder.weight"].T + bias) * lengths
    if config["jump_relu_threshold"]:
        acts = torch.where(pre > config["jump_relu_threshold"], pre, 0)
    else:
        top = pre.relu().topk(K)
        acts = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    return Answer(residuals(), acts, acts @ (state["decoder.weight"] / lengths).T + centre, layer)
