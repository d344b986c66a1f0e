"""TransformerLens: a bridge around the model, stopped after the layer, then encode in float32."""

from typing import TYPE_CHECKING, Any

from benchmarks.implementations.peers import by_batches, read_encoder, read_tokenizer
from benchmarks.implementations.protocol import Job, run

if TYPE_CHECKING:
    from benchmarks.implementations.protocol import Compute


def load(job: Job) -> "Compute":
    """Load the whole model through the bridge."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    dtype = getattr(torch, job.dtype)
    bridge: Any = TransformerBridge.boot_transformers(
        str(job.model), dtype=dtype, device=job.device
    )

    def resid(batch: dict[str, Any]) -> torch.Tensor:
        output: torch.Tensor = bridge(
            batch["input_ids"], attention_mask=batch["attention_mask"], stop_at_layer=job.layer + 1
        )
        return output

    return by_batches(job, read_tokenizer(job), resid, read_encoder(job))


if __name__ == "__main__":
    run(load)
