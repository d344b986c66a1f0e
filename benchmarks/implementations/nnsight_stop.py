"""nnsight: save the layer's output in a trace, stop it there, then encode in float32."""

from typing import TYPE_CHECKING, Any

from benchmarks.implementations.peers import by_batches, read_encoder, read_tokenizer
from benchmarks.implementations.protocol import Job, run

if TYPE_CHECKING:
    from benchmarks.implementations.protocol import Compute


def load(job: Job) -> "Compute":
    """Load the whole model through nnsight."""
    import torch
    from nnsight import TransformersModel

    tokenizer = read_tokenizer(job)
    dtype = getattr(torch, job.dtype)
    model: Any = TransformersModel(
        str(job.model),
        task="text-generation",
        dtype=dtype,
        device_map=job.device,
        tokenizer=tokenizer,
    )
    tokenizer.padding_side = "right"  # nnsight sets it to left

    def resid(batch: dict[str, Any]) -> torch.Tensor:
        with model.trace(batch) as tracer:
            saved = model.model.layers[job.layer].output.save()
            tracer.stop()
        output: torch.Tensor = saved[0] if isinstance(saved, tuple) else saved
        return output

    return by_batches(job, tokenizer, resid, read_encoder(job))


if __name__ == "__main__":
    run(load)
