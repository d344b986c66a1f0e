"""What one who knows transformers writes: the model cut after the layer, batches of 12, only the encoder, in float32.

The last hidden state is taken after the final norm, so the norm is replaced: what comes out is the layer's output.
"""

from typing import TYPE_CHECKING

from benchmarks.ways.measure import Job, K, run

if TYPE_CHECKING:
    from benchmarks.ways.measure import Compute, Ids

BATCH = 12


def load(job: Job, dtype: str = "bfloat16") -> "Compute":
    """The first layers of the model, and the encoder mapped from its file."""
    import numpy as np
    import torch
    from transformers import AutoModel, AutoTokenizer

    sae = torch.load(job.sae_file, map_location="cpu", weights_only=True, mmap=True)
    w_enc, b_enc = sae["W_enc"], sae["b_enc"]
    tokenizer = AutoTokenizer.from_pretrained(job.model, padding_side="right")
    model = AutoModel.from_pretrained(job.model, num_hidden_layers=job.layer + 1, dtype=dtype).eval()
    model.norm = torch.nn.Identity()

    @torch.inference_mode()
    def compute(texts: list[str]) -> "Ids":
        rows = []
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(texts[start : start + BATCH], return_tensors="pt", padding=True)
            hidden = model(**batch, use_cache=False).last_hidden_state
            resid = hidden[batch["attention_mask"].bool()].float()
            rows.append((resid @ w_enc.T + b_enc).topk(K, dim=-1).indices.numpy())
        return np.concatenate(rows)

    return compute


if __name__ == "__main__":
    run(load)
