"""Reference SAEs: other makers' own code writes them and encodes.

Run as `python tests/reference_saes.py FOLDER`. Each case is a folder with the makers' files.
`answers.pt` beside them holds, by the case's path: residuals, dense activations, their decoding,
and the layer. SAELens takes seconds to import and warns, so it runs outside the tests' process.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import save_file

from reference_answers import (
    D_MODEL,
    D_SAE,
    Answer,
    Answers,
    K,
    answer,
    by_saelens,
    randomise,
    residuals,
    tensors,
)
from reference_trainers import dictionary_learning, llama_scope


def saelens(out: Path) -> Answers:
    """Written by SAELens' own classes, read again by its own loader."""

    def about(hook: str = "blocks.3.hook_resid_post") -> SAEMetadata:
        return SAEMetadata(hook_name=hook, model_name="tiny", prepend_bos=False)

    sizes: dict[str, Any] = {"d_in": D_MODEL, "d_sae": D_SAE}
    saes: dict[str, SAE[Any]] = {
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
        "standard-layer-norm": StandardSAE(
            StandardSAEConfig(**sizes, normalize_activations="layer_norm", metadata=about())
        ),
        "topk-layer-norm": TopKSAE(
            TopKSAEConfig(**sizes, k=K, normalize_activations="layer_norm", metadata=about())
        ),
        "jumprelu-constant-norm": JumpReLUSAE(
            JumpReLUSAEConfig(
                **sizes,
                normalize_activations="constant_norm_rescale",
                apply_b_dec_to_input=False,
                metadata=about(),
            )
        ),
        "gated-layer-norm": GatedSAE(
            GatedSAEConfig(**sizes, normalize_activations="layer_norm", metadata=about())
        ),
        "topk-float16": TopKSAE(TopKSAEConfig(**sizes, k=K, dtype="float16", metadata=about())),
        "standard-bfloat16": StandardSAE(
            StandardSAEConfig(**sizes, dtype="bfloat16", metadata=about())
        ),
    }
    answers = {}
    for name, sae in saes.items():
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
        saes[name] = trained
    for name in saes:
        loaded = SAE.load_from_disk(out / "saelens" / name, dtype="float32")
        answers[f"saelens/{name}"] = answer(loaded, 3)
    answers |= {"saelens/before-6": before_6(out / "saelens" / "before-6")}
    return answers | {"saelens/training-checkpoint": not_folded(out / "saelens", about())}


def not_folded(out: Path, metadata: SAEMetadata) -> Answer:
    """A checkpoint within training: the scale of its input lies beside it, not in its weights."""
    sae = StandardSAE(
        StandardSAEConfig(
            d_in=D_MODEL,
            d_sae=D_SAE,
            normalize_activations="expected_average_only_in",
            metadata=metadata,
        )
    )
    randomise(sae)
    folder = out / "training-checkpoint"
    sae.save_model(folder)
    ActivationScaler(scaling_factor=0.37).save(str(folder / "activation_scaler.json"))
    sae.fold_activation_norm_scaling_factor(0.37)
    return answer(sae, 3)


def before_6(folder: Path) -> Answer:
    """A config as version 3 wrote it: all in one, TopK an activation function of a standard SAE."""
    sae = TopKSAE(TopKSAEConfig(d_in=D_MODEL, d_sae=D_SAE, k=K))
    randomise(sae)
    sae.save_model(folder)
    old = {
        "architecture": "standard",
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "device": "cpu",
        "model_name": "tiny",
        "hook_name": "blocks.3.hook_resid_post",
        "hook_layer": 3,
        "hook_head_index": None,
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "normalize_activations": "none",
        "context_size": 128,
        "sae_lens_training_version": "3.22.0",
        "model_from_pretrained_kwargs": {},
    }
    (folder / "cfg.json").write_text(json.dumps(old))
    return answer(SAE.load_from_disk(folder, dtype="float32"), 3)


def gemma_scope(out: Path) -> Answers:
    """Both versions as their repositories lay them out, read by SAELens' loaders."""
    return (
        gemma_scope_1(out, "layer_5/width_16k/average_l0_71", np.savez, seed=20)
        | gemma_scope_1(out, "layer_5/width_65k/average_l0_80", np.savez_compressed, seed=27)
        | gemma_scope_2(out, "resid_post/layer_9_width_16k_l0_small")
    )


def gemma_scope_1(out: Path, folder: str, save: Callable[..., None], seed: int) -> Answers:
    root = out / "gemma-scope-2b-pt-res"
    (root / folder).mkdir(parents=True)
    arrays = {name: tensor.numpy() for name, tensor in tensors(seed).items()}
    save(root / folder / "params.npz", **arrays)
    loader = loaders.gemma_2_sae_huggingface_loader
    sae = by_saelens(loader, "google/gemma-scope-2b-pt-res", folder, root)
    return {f"gemma-scope-2b-pt-res/{folder}": answer(sae, 5)}


def gemma_scope_2(out: Path, folder: str) -> Answers:
    root = out / "gemma-scope-2-1b-pt"
    (root / folder).mkdir(parents=True)
    names = {"W_enc": "w_enc", "W_dec": "w_dec"}
    state = {names.get(name, name): tensor for name, tensor in tensors(50).items()}
    save_file(state, root / folder / "params.safetensors")
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-1b-pt",
        "hf_hook_point_in": "model.layers.9.output",
    }
    (root / folder / "config.json").write_text(json.dumps(config))
    loader = loaders.gemma_3_sae_huggingface_loader
    sae = by_saelens(loader, "google/gemma-scope-2-1b-pt", folder, root)
    return {f"gemma-scope-2-1b-pt/{folder}": answer(sae, 9)}


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


def main(out: Path) -> None:
    answers: Answers = {}
    for make in (saelens, gemma_scope, dictionary_learning, sparsify, llama_scope):
        try:
            answers |= make(out)
        except ModuleNotFoundError as error:
            if error.name != "sparsify":
                raise
    tuples = {name: tuple(reference) for name, reference in answers.items()}
    torch.save(tuples, out / "answers.pt")
    print(f"SAELens {sae_lens.__version__}: {len(answers)} cases")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
