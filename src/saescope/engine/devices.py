"""Which device and dtype a model runs in."""

from typing import Any, Literal

import torch

from saescope.errors import SourceError

DType = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda", "mps"]


def choose_device(device: Device) -> torch.device:
    """The device asked for, or the best one here; raises SourceError if it is not available."""
    have = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device == "auto":
        return torch.device("cuda" if have["cuda"] else "mps" if have["mps"] else "cpu")
    if not have[device]:
        raise SourceError(f"device {device} is not available here: use --device cpu or auto")
    return torch.device(device)


def choose_dtype(dtype: DType, config: Any) -> torch.dtype:
    if dtype != "auto":
        return torch.float32 if dtype == "float32" else torch.bfloat16
    stored = getattr(config, "dtype", None)
    # float16 ends at 65,504, below the norms of attention sinks, so such checkpoints are computed in float32.
    return torch.bfloat16 if stored == torch.bfloat16 else torch.float32
