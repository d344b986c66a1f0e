"""Reference SAEs: other makers' own code writes them and encodes. `python tests/judges.py FOLDER`.

Each case is a folder with the makers' files. `answers.pt` beside them holds, by the case's path:
residuals, dense activations, their decoding, and the layer. SAELens takes seconds to import and
warns, so it runs outside of the tests' own process.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sae_lens
import torch
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAE, SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from safetensors.torch import save_file
from torch import Tensor

D_MODEL, D_SAE, K = 32, 96, 8


class Answer(NamedTuple):
    """What a maker's code makes of some residuals."""

    resid: Tensor
    acts: Tensor
    decoded: Tensor
    layer: int


Answers = dict[str, Answer]


def residuals() -> Tensor:
    return torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1)) * 2 + 0.3


def drawn(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomise(module: torch.nn.Module) -> None:
    """Every parameter random, biases too; decoder rows of different lengths."""
    for seed, (name, parameter) in enumerate(sorted(module.named_parameters())):
        scale = 0.3 if parameter.ndim == 1 else parameter.shape[name == "W_dec"] ** -0.5
        parameter.data = drawn(*parameter.shape, seed=seed, scale=scale).to(parameter.dtype)
        if "threshold" in name:
            parameter.data = parameter.data.abs() + 0.4
    if isinstance(getattr(module, "W_dec", None), torch.nn.Parameter):
        lengths = torch.linspace(0.5, 2, len(module.W_dec))[:, None].to(module.W_dec.dtype)
        module.W_dec.data = module.W_dec.data * lengths


@torch.no_grad()
def answer(sae: Any, layer: int, scale: float = 1.0) -> Answer:
    """`scale` is how many of saescope's units one of the maker's is."""
    acts = sae.encode(residuals())
    return Answer(residuals(), acts * scale, sae.decode(acts), layer)


def saelens(out: Path) -> Answers:
    """Written by SAELens' own classes, read again by its own loader."""

    def about(hook: str = "blocks.3.hook_resid_post") -> SAEMetadata:
        return SAEMetadata(hook_name=hook, model_name="tiny", prepend_bos=False)

    sizes: dict[str, Any] = {"d_in": D_MODEL, "d_sae": D_SAE}
    made: dict[str, SAE[Any]] = {
        "standard": StandardSAE(StandardSAEConfig(**sizes, metadata=about())),
        "standard-not-centred": StandardSAE(
            StandardSAEConfig(**sizes, apply_b_dec_to_input=False, metadata=about())
        ),
        "standard-resid-pre": StandardSAE(
            StandardSAEConfig(**sizes, metadata=about("blocks.4.hook_resid_pre"))
        ),
        "standard-says-no-hook": StandardSAE(StandardSAEConfig(**sizes)),
        "topk": TopKSAE(TopKSAEConfig(**sizes, k=K, metadata=about())),
        "topk-by-decoder-norm": TopKSAE(
            TopKSAEConfig(**sizes, k=K, rescale_acts_by_decoder_norm=True, metadata=about())
        ),
        "jumprelu": JumpReLUSAE(JumpReLUSAEConfig(**sizes, metadata=about())),
        "jumprelu-not-centred": JumpReLUSAE(
            JumpReLUSAEConfig(**sizes, apply_b_dec_to_input=False, metadata=about())
        ),
        "gated": GatedSAE(GatedSAEConfig(**sizes, metadata=about())),
        "standard-bfloat16": StandardSAE(
            StandardSAEConfig(**sizes, dtype="bfloat16", metadata=about())
        ),
    }
    answers = {}
    for name, sae in made.items():
        randomise(sae)
        sae.save_model(out / "saelens" / name)
    for rescaled in (False, True):
        config = BatchTopKTrainingSAEConfig(
            **sizes, k=K, rescale_acts_by_decoder_norm=rescaled, metadata=about()
        )
        trained = BatchTopKTrainingSAE(config)
        randomise(trained)
        trained.topk_threshold = torch.tensor(0.9, dtype=torch.double)
        name = f"batchtopk{'-by-decoder-norm' * rescaled}"
        trained.save_inference_model(out / "saelens" / name)
        made[name] = trained
    for name in made:
        again = SAE.load_from_disk(out / "saelens" / name, dtype="float32")
        answers[f"saelens/{name}"] = answer(again, 3)
    return answers | {"saelens/before-6": before_6(out / "saelens" / "before-6")}


def before_6(folder: Path) -> Answer:
    """A config as version 3 wrote it: all in one, TopK an activation function of a standard SAE."""
    sae = TopKSAE(TopKSAEConfig(d_in=D_MODEL, d_sae=D_SAE, k=K))
    randomise(sae)
    sae.save_model(folder)
    old = {
        "architecture": "standard", "d_in": D_MODEL, "d_sae": D_SAE, "dtype": "torch.float32", "device": "cpu",
        "model_name": "tiny", "hook_name": "blocks.3.hook_resid_post", "hook_layer": 3, "hook_head_index": None,
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False, "normalize_activations": "none", "context_size": 128,
        "sae_lens_training_version": "3.22.0", "model_from_pretrained_kwargs": {},
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(old))
    return answer(SAE.load_from_disk(folder, dtype="float32"), 3)


def by_saelens(loader: Callable[..., Any], repo: str, folder: str, out: Path) -> SAE[Any]:
    """What SAELens' loader of a repository makes of files that lie here, whatever sizes it expects of them."""

    def converted(**asked: Any) -> Any:
        config, state, sparsity = loader(**asked)
        config["d_in"], config["d_sae"] = state["W_enc"].shape
        state = {name: tensor.float() for name, tensor in state.items()}
        return config | {"dtype": "float32"}, state, sparsity

    def here(repo_id: str, filename: str, subfolder: str = "", **_: Any) -> str:
        return str(out / subfolder / filename)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        return {
            name: list(tensor.shape)
            for name, tensor in loaders.load_safetensors_weights(out / filename).items()
        }

    loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = here, shapes  # type: ignore[assignment]
    return SAE.from_pretrained(repo, folder, converter=converted)


def tensors(seed: int) -> dict[str, Tensor]:
    """Random weights with features as columns of W_enc and rows of W_dec, as most makers store them."""
    lengths = torch.linspace(0.5, 2, D_SAE)[:, None]
    return {
        "W_enc": drawn(D_MODEL, D_SAE, seed=seed, scale=D_MODEL**-0.5),
        "b_enc": drawn(D_SAE, seed=seed + 1, scale=0.3),
        "W_dec": drawn(D_SAE, D_MODEL, seed=seed + 2, scale=D_MODEL**-0.5) * lengths,
        "b_dec": drawn(D_MODEL, seed=seed + 3, scale=0.3),
        "threshold": drawn(D_SAE, seed=seed + 4, scale=0.3).abs() + 0.4,
    }


def gemma_scope(out: Path) -> Answers:
    """Both versions as their repositories lay them out, read by SAELens' loaders."""
    answers = {}
    for n, folder in enumerate(
        ("layer_5/width_16k/average_l0_71", "layer_5/width_65k/average_l0_80")
    ):
        (out / "gemma-scope-2b-pt-res" / folder).mkdir(parents=True)
        save = np.savez if n == 0 else np.savez_compressed
        arrays = {name: tensor.numpy() for name, tensor in tensors(20 + 7 * n).items()}
        save(out / "gemma-scope-2b-pt-res" / folder / "params.npz", **arrays)
        repo = "google/gemma-scope-2b-pt-res"
        sae = by_saelens(
            loaders.gemma_2_sae_huggingface_loader, repo, folder, out / "gemma-scope-2b-pt-res"
        )
        answers[f"gemma-scope-2b-pt-res/{folder}"] = answer(sae, 5)
    folder = "resid_post/layer_9_width_16k_l0_small"
    (out / "gemma-scope-2-1b-pt" / folder).mkdir(parents=True)
    names = {"W_enc": "w_enc", "W_dec": "w_dec"}
    state = {names.get(name, name): tensor for name, tensor in tensors(50).items()}
    save_file(state, out / "gemma-scope-2-1b-pt" / folder / "params.safetensors")
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-1b-pt",
        "hf_hook_point_in": "model.layers.9.output",
    }
    (out / "gemma-scope-2-1b-pt" / folder / "config.json").write_text(json.dumps(config))
    repo = "google/gemma-scope-2-1b-pt"
    sae = by_saelens(
        loaders.gemma_3_sae_huggingface_loader, repo, folder, out / "gemma-scope-2-1b-pt"
    )
    return answers | {f"gemma-scope-2-1b-pt/{folder}": answer(sae, 9)}


def dictionary_learning(out: Path) -> Answers:
    """`ae.pt` as its trainers save it, read by SAELens' loader; the file of its first class by its own formula."""
    made, answers = tensors(60), {}
    linear = {
        "encoder.weight": made["W_enc"].T.contiguous(),
        "encoder.bias": made["b_enc"],
        "decoder.weight": made["W_dec"].T.contiguous(),
    }
    trained = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.9)}
    states: dict[str, dict[str, Tensor]] = {
        "AutoEncoderTopK": {**linear, "b_dec": made["b_dec"], **trained},
        "BatchTopKSAE": {**linear, "b_dec": made["b_dec"], **trained},
        "MatryoshkaBatchTopKSAE": {**made, **trained},
        "JumpReluAutoEncoder": made,
        "GatedAutoEncoder": {
            "encoder.weight": linear["encoder.weight"], "decoder.weight": linear["decoder.weight"],
            "decoder_bias": made["b_dec"], "r_mag": drawn(D_SAE, seed=71, scale=0.3),
            "gate_bias": drawn(D_SAE, seed=72, scale=0.3), "mag_bias": drawn(D_SAE, seed=73, scale=0.3),
        },
        "AutoEncoder": {**linear, "bias": made["b_dec"]},
        "AutoEncoderNew": {**linear, "decoder.bias": made["b_dec"]},
    }  # fmt: skip
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
        "dict_class": kind, "activation_dim": D_MODEL, "dict_size": D_SAE, "layer": 6, "lm_name": "tiny", "k": K,
        "trainer_class": "Trainer", "submodule_name": "resid_post_layer_6",
    }  # fmt: skip
    buffer = {"d_submodule": D_MODEL, "io": "out", "n_ctxs": 1, "ctx_len": 128}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": buffer}))


def relu_by_formula(state: dict[str, Tensor], kind: str) -> Answer:
    """dictionary_learning's AutoEncoder gives decoder columns length 1 when it loads; AutoEncoderNew does not."""
    centre = state["bias"] if kind == "AutoEncoder" else torch.zeros(D_MODEL)
    lengths = state["decoder.weight"].norm(dim=0) if kind == "AutoEncoder" else torch.ones(D_SAE)
    pre = (residuals() - centre) @ state["encoder.weight"].T + state["encoder.bias"]
    decoded = pre.relu() @ state["decoder.weight"].T + state.get("bias", state.get("decoder.bias"))
    return Answer(residuals(), pre.relu() * lengths, decoded, 6)


def sparsify(out: Path) -> Answers:
    """Written and answered by EleutherAI's own class."""
    from sparsify import SaeConfig, SparseCoder

    answers = {}
    for name, config in {
        "layers.0": SaeConfig(expansion_factor=3, k=K),
        "layers.4": SaeConfig(num_latents=D_SAE, k=K, normalize_decoder=False),
    }.items():
        coder = SparseCoder(D_MODEL, config)
        randomise(coder)
        coder.save_to_disk(out / "sparsify" / name)
        coder = SparseCoder.load_from_disk(out / "sparsify" / name)
        with torch.no_grad():
            acts, ids, _ = coder.encode(residuals())
            dense = torch.zeros(len(acts), D_SAE).scatter(1, ids, acts)
            answers[f"sparsify/{name}"] = Answer(
                residuals(), dense, coder.decode(acts, ids), int(name[-1])
            )
    return answers


def llama_scope(out: Path) -> Answers:
    """Decoder columns of length 1: SAELens' loader, whose unit is s times ours. Any lengths: OpenMOSS's formula."""
    answers = {}
    for n, (lengths, act_fn, average) in enumerate(
        [("one", "jumprelu", 9.0), ("any", "topk", 9.0), ("any", "topk", 0)]
    ):
        name = f"Llama3_1-8B-Base-L{n + 3}R-8x"
        folder, made = out / "llama_scope" / name, tensors(90 + n)
        (folder / "checkpoints").mkdir(parents=True)
        decoder = (
            made["W_dec"] / made["W_dec"].norm(dim=1, keepdim=True)
            if lengths == "one"
            else made["W_dec"]
        )
        state = {
            "encoder.weight": made["W_enc"].T.contiguous(), "encoder.bias": made["b_enc"],
            "decoder.weight": decoder.T.contiguous(), "decoder.bias": made["b_dec"],
        }  # fmt: skip
        save_file(state, folder / "checkpoints" / "final.safetensors")
        config = {
            "d_model": D_MODEL, "d_sae": D_SAE, "act_fn": act_fn, "jump_relu_threshold": 0.7 if average else 0.0,
            "top_k": K, "norm_activation": "dataset-wise" if average else "none", "use_decoder_bias": True,
            "dataset_average_activation_norm": {"in": average, "out": average} if average else None,
            "apply_decoder_bias_to_pre_encoder": not average, "sparsity_include_decoder_norm": True,
            "hook_point_in": f"blocks.{n + 3}.hook_resid_post", "hook_point_out": f"blocks.{n + 3}.hook_resid_post",
        }  # fmt: skip
        (folder / "hyperparams.json").write_text(json.dumps(config))
        answers[f"llama_scope/{name}"] = openmoss(state, config, n + 3)
        if lengths == "one":
            scale = D_MODEL**0.5 / average
            sae = by_saelens(
                loaders.llama_scope_sae_huggingface_loader, "x/y", name, out / "llama_scope"
            )
            sae.fold_activation_norm_scaling_factor(scale)
            sae.threshold.data = torch.full(
                (D_SAE,), 0.7 * scale
            )  # its config holds it in bfloat16
            theirs = answer(sae, n + 3, 1 / scale)
            torch.testing.assert_close(
                theirs.acts, answers[f"llama_scope/{name}"].acts, atol=1e-5, rtol=1e-5
            )
            answers[f"llama_scope/{name}"] = theirs
    return answers


def openmoss(state: dict[str, Tensor], config: dict[str, Any], layer: int) -> Answer:
    """The formula of OpenMOSS's loader of late 2024, written down: scales first, then columns of length 1."""
    average = config["dataset_average_activation_norm"]
    scale = D_MODEL**0.5 / average["in"] if average else 1.0
    bias, centre = state["encoder.bias"] / scale, state["decoder.bias"] / scale
    lengths = state["decoder.weight"].norm(dim=0)
    read = residuals() - centre if config["apply_decoder_bias_to_pre_encoder"] else residuals()
    pre = (read @ state["encoder.weight"].T + bias) * lengths
    if config["jump_relu_threshold"]:
        acts = torch.where(pre > config["jump_relu_threshold"], pre, 0)
    else:
        top = pre.relu().topk(K)
        acts = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    return Answer(residuals(), acts, acts @ (state["decoder.weight"] / lengths).T + centre, layer)


def main(out: Path) -> None:
    answers: Answers = {}
    for make in (saelens, gemma_scope, dictionary_learning, sparsify, llama_scope):
        try:
            answers |= make(out)
        except ModuleNotFoundError as error:
            if error.name != "sparsify":
                raise
            answers |= {}
    torch.save({name: tuple(given) for name, given in answers.items()}, out / "answers.pt")
    print(f"SAELens {sae_lens.__version__}: {len(answers)} cases")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
