"""saescope's Python API as its user calls it: two loads, then a run on disk, read back."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ways.measure import Job, run

if TYPE_CHECKING:
    from benchmarks.ways.measure import Compute, Ids


def load(job: Job, **options: Any) -> "Compute":
    """The model cut after the layer, with options of `load_lm`, and the encoder."""
    import saescope

    lm = saescope.load_lm(job.model, [job.layer], **options)
    sae = saescope.load_sae(job.sae, job.layer, decoder=False)

    def compute(texts: list[str]) -> "Ids":
        with tempfile.TemporaryDirectory() as folder:
            made = saescope.extract(lm, [sae], saescope.texts(texts), Path(folder) / "run")
            return made.features(job.layer).ids

    return compute


if __name__ == "__main__":
    run(load)
