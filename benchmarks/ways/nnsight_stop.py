"""nnsight: the layer's output saved within a trace, which is then stopped; then the encoder in float32."""

from typing import TYPE_CHECKING, Any

from benchmarks.ways.measure import Job, run
from benchmarks.ways.plain import by_batches, read_encoder, read_tokenizer

if TYPE_CHECKING:
    from benchmarks.ways.measure import Compute


def load(job: Job) -> "Compute":
    """The whole model, as nnsight loads it."""
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
    tokenizer.padding_side = "right"  # nnsight turned it round

    def resid(batch: dict[str, Any]) -> torch.Tensor:
        with model.trace(batch) as tracer:
            found = model.model.layers[job.layer].output.save()
            tracer.stop()
        output: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return output

    return by_batches(job, tokenizer, resid, read_encoder(job))


if __name__ == "__main__":
    run(load)
