"""saescope's Python API: load model and SAE, extract to a run on disk, read it."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.implementations.protocol import Job, K, run

if TYPE_CHECKING:
    from benchmarks.implementations.protocol import Compute, Ids


def load(job: Job) -> "Compute":
    """Load the model, cut after the layer or streamed block by block, and the encoder."""
    import saescope

    lm = saescope.load_lm(
        job.model,
        [job.layer],
        dtype="float32" if job.dtype == "float32" else "auto",
        device="cuda" if job.device == "cuda" else "cpu",
        streamed=job.streamed,
    )
    sae = saescope.load_sae(job.sae, job.layer, decoder=False, device=job.device)

    def compute(texts: list[str]) -> "Ids":
        with tempfile.TemporaryDirectory() as folder:
            stored = saescope.extract(lm, [sae], saescope.texts(texts), Path(folder) / "run")
            return stored.features(job.layer).strongest(K)

    return compute


if __name__ == "__main__":
    run(load)
