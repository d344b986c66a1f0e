"""What decides the last bits of a result beside the numbers that go in."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch

from saescope.version import __version__


def numerics(device: torch.device) -> dict[str, Any]:
    """The processor, the threads among which a sum is divided, and torch's float32 setting."""
    return {
        "processor": _processor(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "float32_matmul": torch.get_float32_matmul_precision(),
    }


def library_versions() -> dict[str, str]:
    """Versions of all libraries that decide a result, saescope among them."""
    libraries = ("torch", "transformers", "tokenizers")
    return {**{name: metadata.version(name) for name in libraries}, "saescope": __version__}


@contextmanager
def threads(n: int | None) -> Iterator[None]:
    """Within the context, torch computes with n threads; None changes nothing."""
    before = torch.get_num_threads()
    if n is not None:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability()
    return device.type
