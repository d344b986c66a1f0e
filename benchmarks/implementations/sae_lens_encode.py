"""SAELens: its SAE encodes residuals of the cut model; dense pre-acts, then top k."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.implementations.peers import by_batches, read_tokenizer
from benchmarks.implementations.protocol import Job, K, run
from benchmarks.implementations.transformers_cut import cut_model

if TYPE_CHECKING:
    from benchmarks.implementations.protocol import Compute


def load(job: Job) -> "Compute":
    """Load the cut model, and the whole SAE in SAELens's orientation."""
    from sae_lens import SAE

    sae: Any = SAE.load_from_disk(job.sae_file, device=job.device, converter=_qwen_scope)
    return by_batches(job, read_tokenizer(job), cut_model(job), sae.encode)


def _qwen_scope(
    path: Path, device: str, cfg_overrides: object = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and tensors, transposed as SAELens's own Qwen-Scope loader does."""
    import torch

    tensors = torch.load(path, map_location=device, weights_only=True)
    w_enc, w_dec = tensors["W_enc"].T.contiguous(), tensors["W_dec"].T.contiguous()
    config = {
        "architecture": "topk",
        "k": K,  # not in the file
        "d_in": w_enc.shape[0],
        "d_sae": w_enc.shape[1],
        "dtype": "float32",
        "device": device,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
    }
    biases = {name: tensors[name] for name in ("b_enc", "b_dec")}
    return config, {"W_enc": w_enc, "W_dec": w_dec, **biases}


if __name__ == "__main__":
    run(load)
