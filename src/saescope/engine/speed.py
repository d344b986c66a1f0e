"""How fast this machine multiplies matrices, measured in a fifth of a second."""

import time

import torch

_SECONDS = 0.2
_ROWS, _WIDTH = 512, 2048


def matmul_rate(dtype: str, device: str) -> float:
    """Floating-point operations a second of a product as the model's, in this dtype on this device."""
    kind = torch.float32 if dtype == "float32" else torch.bfloat16
    rows = torch.ones(_ROWS, _WIDTH, dtype=kind, device=device)
    weight = torch.ones(_WIDTH, _WIDTH, dtype=kind, device=device)
    _multiply(rows, weight)  # the first one includes setting up
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < _SECONDS:
        _multiply(rows, weight)
        done += 1
    return done * 2 * _ROWS * _WIDTH * _WIDTH / spent


def _multiply(rows: torch.Tensor, weight: torch.Tensor) -> None:
    (rows @ weight.T)[0, 0].item()  # reading a value waits for devices that compute on their own
