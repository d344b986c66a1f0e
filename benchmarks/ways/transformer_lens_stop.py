"""TransformerLens: its bridge around the model, stopped after the layer; then the encoder in float32."""

from typing import TYPE_CHECKING, Any

from benchmarks.ways.measure import Job, run
from benchmarks.ways.plain import by_batches, read_encoder, read_tokenizer

if TYPE_CHECKING:
    from benchmarks.ways.measure import Compute


def load(job: Job) -> "Compute":
    """The whole model, as the bridge loads it."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    dtype = getattr(torch, job.dtype)
    bridge: Any = TransformerBridge.boot_transformers(
        str(job.model), dtype=dtype, device=job.device
    )

    def resid(batch: dict[str, Any]) -> torch.Tensor:
        found: torch.Tensor = bridge(
            batch["input_ids"], attention_mask=batch["attention_mask"], stop_at_layer=job.layer + 1
        )
        return found

    return by_batches(job, read_tokenizer(job), resid, read_encoder(job))


if __name__ == "__main__":
    run(load)
