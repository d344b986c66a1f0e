"""What ways without saescope have in common: padded batches of 12, and the encoder mapped from its file, in float32."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.ways.measure import Job, K

if TYPE_CHECKING:
    import torch

    from benchmarks.ways.measure import Compute, Ids

    Resid = Callable[[dict[str, Any]], torch.Tensor]
    Encode = Callable[[torch.Tensor], torch.Tensor]

BATCH = 12


def read_tokenizer(job: Job) -> Any:
    """The model's, filling rows up on the right."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(job.model, padding_side="right")


def read_encoder(job: Job) -> "Encode":
    """Residuals to dense pre-activations."""
    import torch

    sae = torch.load(job.sae_file, map_location="cpu", weights_only=True, mmap=True)
    w_enc, b_enc = sae["W_enc"].to(job.device), sae["b_enc"].to(job.device)
    return lambda resid: resid @ w_enc.T + b_enc


def by_batches(job: Job, tokenizer: Any, resid: "Resid", encode: "Encode") -> "Compute":
    """Every token's strongest features, from `resid` of each batch's input ids and mask."""
    import numpy as np
    import torch

    @torch.inference_mode()
    def compute(texts: list[str]) -> "Ids":
        rows = []
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(texts[start : start + BATCH], return_tensors="pt", padding=True).to(
                job.device
            )
            found = resid(dict(batch))[batch["attention_mask"].bool()].float()
            rows.append(encode(found).topk(K, dim=-1).indices.cpu().numpy())
        return np.concatenate(rows)

    return compute
