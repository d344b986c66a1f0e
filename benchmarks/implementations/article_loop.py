"""The article's loop: the whole causal LM, one prompt at a time, the encoder in bfloat16."""

from typing import TYPE_CHECKING, Any

from benchmarks.implementations.protocol import Job, K, run

if TYPE_CHECKING:
    from benchmarks.implementations.protocol import Compute, Ids


def load(job: Job) -> "Compute":
    """Load model and SAE and hook the layer."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sae = torch.load(job.sae_file, map_location=job.device, weights_only=True)
    w_enc, b_enc = sae["W_enc"].to(torch.bfloat16), sae["b_enc"].to(torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(job.model, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(
        job.model, dtype=torch.bfloat16, trust_remote_code=False
    )
    model.eval().to(job.device)
    captured: dict[str, Any] = {}

    def capture(_block: Any, _inputs: Any, output: Any) -> None:
        resid = output[0] if isinstance(output, tuple) else output
        captured["resid"] = resid.detach()

    model.model.layers[job.layer].register_forward_hook(capture)

    def compute(texts: list[str]) -> "Ids":
        rows = []
        for text in texts:
            with torch.no_grad():
                model(**tokenizer(text, return_tensors="pt").to(job.device))
                pre_acts = captured["resid"] @ w_enc.T + b_enc
                ids = pre_acts.topk(K, dim=-1).indices[0]
            rows.append(ids.cpu().numpy())
        return np.concatenate(rows)

    return compute


if __name__ == "__main__":
    run(load)
