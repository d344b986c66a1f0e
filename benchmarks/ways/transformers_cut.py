"""What one who knows transformers writes: the model cut after the layer, batches of 12, only the encoder, in float32.

The last hidden state is taken after the final norm, so the norm is replaced: what comes out is the layer's output.
"""

from typing import TYPE_CHECKING

from benchmarks.ways.measure import Job, run
from benchmarks.ways.plain import by_batches, read_encoder, read_tokenizer

if TYPE_CHECKING:
    from benchmarks.ways.measure import Compute
    from benchmarks.ways.plain import Resid


def load(job: Job) -> "Compute":
    """The first layers of the model, and the encoder mapped from its file."""
    return by_batches(job, read_tokenizer(job), cut_model(job), read_encoder(job))


def cut_model(job: Job) -> "Resid":
    """The one line, and what makes its last hidden state the layer's output."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(job.model, num_hidden_layers=job.layer + 1, dtype=job.dtype)
    model.eval().to(job.device)
    model.norm = torch.nn.Identity()
    return lambda batch: model(**batch, use_cache=False).last_hidden_state


if __name__ == "__main__":
    run(load)
