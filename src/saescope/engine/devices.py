"""Which device and dtype a model runs in."""

from typing import Any, Literal

import torch

from saescope.errors import SourceError

DType = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda", "mps"]


def choose_device(device: Device) -> torch.device:
    """Return the requested device, or the best one; raise SourceError if it is not available."""
    is_available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        best = next(name for name, available in is_available.items() if available)
        return torch.device(best)
    if not is_available[device]:
        raise SourceError(f"device={device} is not available here: pass device=cpu or device=auto")
    return torch.device(device)


def choose_dtype(dtype: DType, config: Any) -> torch.dtype:
    """Return the requested dtype. `auto`: bfloat16 for bfloat16 checkpoints, float32 otherwise.

    float16 ends at 65,504, below the norms of attention sinks, so it is computed in float32.
    """
    if dtype == "float32":
        return torch.float32
    if dtype == "bfloat16" or getattr(config, "dtype", None) == torch.bfloat16:
        return torch.bfloat16
    return torch.float32
