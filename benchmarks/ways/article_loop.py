"""The article's way: the whole causal LM, one prompt at a time, the SAE loaded whole and its encoder in bfloat16."""

from typing import TYPE_CHECKING, Any

from benchmarks.ways.measure import Job, K, run

if TYPE_CHECKING:
    from benchmarks.ways.measure import Compute, Ids


def load(job: Job) -> "Compute":
    """Model and SAE in memory, a hook on the layer."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sae = torch.load(job.sae_file, map_location=job.device, weights_only=True)
    w_enc, b_enc = sae["W_enc"].to(torch.bfloat16), sae["b_enc"].to(torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.bfloat16)
    model.eval().to(job.device)
    captured: dict[str, Any] = {}

    def keep(_block: Any, _inputs: Any, output: Any) -> None:
        captured["resid"] = (output[0] if isinstance(output, tuple) else output).detach()

    model.model.layers[job.layer].register_forward_hook(keep)

    def compute(texts: list[str]) -> "Ids":
        rows = []
        for text in texts:
            with torch.no_grad():
                model(**tokenizer(text, return_tensors="pt").to(job.device))
                pre_acts = captured["resid"] @ w_enc.T + b_enc
                rows.append(pre_acts.topk(K, dim=-1).indices[0].cpu().numpy())
        return np.concatenate(rows)

    return compute


if __name__ == "__main__":
    run(load)
