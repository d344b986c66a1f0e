"""Shared by peers: padded batches of 12, and the encoder mapped from its file, in float32."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.implementations.protocol import Job, K

if TYPE_CHECKING:
    import torch

    from benchmarks.implementations.protocol import Compute, Ids

    Resid = Callable[[dict[str, Any]], torch.Tensor]
    Encode = Callable[[torch.Tensor], torch.Tensor]

BATCH = 12


def read_tokenizer(job: Job) -> Any:
    """The model's tokenizer, padding on the right."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(job.model, padding_side="right", trust_remote_code=False)


def read_encoder(job: Job) -> "Encode":
    """The function from residuals to dense pre-activations."""
    import torch

    sae = torch.load(job.sae_file, map_location="cpu", weights_only=True, mmap=True)
    w_enc, b_enc = sae["W_enc"].to(job.device), sae["b_enc"].to(job.device)
    return lambda resid: resid @ w_enc.T + b_enc


def by_batches(job: Job, tokenizer: Any, resid: "Resid", encode: "Encode") -> "Compute":
    """A function to the top features per token, given functions to residuals and to pre-acts."""
    import numpy as np
    import torch

    @torch.inference_mode()
    def compute(texts: list[str]) -> "Ids":
        rows = []
        for start in range(0, len(texts), BATCH):
            batch_texts = texts[start : start + BATCH]
            batch = tokenizer(batch_texts, return_tensors="pt", padding=True).to(job.device)
            real_tokens = batch["attention_mask"].bool()
            token_resids = resid(dict(batch))[real_tokens].float()
            ids = encode(token_resids).topk(K, dim=-1).indices
            rows.append(ids.cpu().numpy())
        return np.concatenate(rows)

    return compute
