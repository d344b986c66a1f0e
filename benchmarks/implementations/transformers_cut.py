"""Plain transformers: the model cut after the layer, batches of 12, the encoder in float32.

The last hidden state is taken after the final norm. Replacing the norm by the identity makes it the
layer's output.
"""

from typing import TYPE_CHECKING

from benchmarks.implementations.peers import by_batches, read_encoder, read_tokenizer
from benchmarks.implementations.protocol import Job, run

if TYPE_CHECKING:
    from benchmarks.implementations.peers import Resid
    from benchmarks.implementations.protocol import Compute


def load(job: Job) -> "Compute":
    """Load the first layers of the model, and map the encoder from its file."""
    return by_batches(job, read_tokenizer(job), cut_model(job), read_encoder(job))


def cut_model(job: Job) -> "Resid":
    """A function to the layer's output, from a model with only the layers up to it."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(
        job.model, num_hidden_layers=job.layer + 1, dtype=job.dtype, trust_remote_code=False
    )
    model.eval().to(job.device)
    model.norm = torch.nn.Identity()
    return lambda batch: model(**batch, use_cache=False).last_hidden_state


if __name__ == "__main__":
    run(load)
