"""Shared by all implementations: options, timing, peak memory, and a JSON line of figures.

Imports nothing heavy, so that the import of torch counts as loading.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.memory import Memory

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ids = npt.NDArray[np.integer[Any]]
    Compute = Callable[[list[str]], Ids]

K = 50


@dataclass(frozen=True)
class Job:
    """Model folder, SAE folder, layer, dtype and device."""

    model: Path
    sae: Path
    layer: int
    dtype: str
    device: str
    streamed: bool

    @property
    def sae_file(self) -> Path:
        """The SAE file of the layer."""
        return self.sae / f"layer{self.layer}.sae.pt"


def run(load: "Callable[[Job], Compute]") -> None:
    """Load, compute the prompts, save their top feature ids and print the figures as JSON.

    The ids are an array (tokens, 50) in prompt order.
    """
    args = _parse()
    job = Job(args.model, args.sae, args.layer, args.dtype, args.device, args.streamed)
    texts: list[str] = json.loads(args.prompts.read_text())
    with Memory() as memory:
        start = time.perf_counter()
        compute = load(job)
        loaded = time.perf_counter()
        ids = compute(texts)
        computed = time.perf_counter()
    import numpy as np

    np.save(args.out, ids.astype(np.int32))
    figures = {
        "load_s": loaded - start,
        "compute_s": computed - loaded,
        "tokens": len(ids),
        **memory.peak,
        **_device_peak(job.device),
    }
    print(json.dumps(figures))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("model", "sae", "prompts", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--streamed", action="store_true")
    return parser.parse_args()


def _device_peak(device: str) -> dict[str, Any]:
    if device == "cpu":
        return {}
    import torch

    return {"peak_device": torch.cuda.max_memory_allocated(), "gpu": torch.cuda.get_device_name()}
