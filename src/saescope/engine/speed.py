"""How fast this machine multiplies matrices in each way there is, measured in about a tenth of a second."""

import time
from collections.abc import Sequence
from functools import cache

import torch

from saescope.engine.product import NATIVE, Kernel, Kernels, Products, available

_KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# The rows of a batch of short prompts, and a part of a layer's weights.
_ROWS, _IN, _OUT = 512, 2048, 512
_TIMES = 2
# A kernel is taken before one that stands earlier only where it is clearly faster: runs should not differ by chance.
_GAIN = 1.15
_SECONDS = 0.2


def choose(dtypes: Sequence[str], device: str, asked: Kernels = NATIVE) -> Kernels:
    """The kernel for the weights of each dtype on this device: the one asked for where it is there, else the fastest.

    Rates are measured once a process.
    """
    threads = torch.get_num_threads()
    chosen: dict[str, Kernel] = {}
    for dtype in dict.fromkeys(dtypes):
        if asked.get(dtype) in available(_KINDS[dtype]):
            chosen[dtype] = asked[dtype]
        else:
            chosen[dtype] = _fastest(dtype, threads) if device == "cpu" else "native"
    return chosen


def matmul_rate(dtype: str, device: str) -> float:
    """Floating-point operations a second of a product as the model's, in this dtype on this device."""
    if device == "cpu":
        return max(_rates(dtype, torch.get_num_threads()).values())
    kind = _KINDS[dtype]
    rows = torch.ones(_ROWS, _IN, dtype=kind, device=device)
    weight = torch.ones(_IN, _IN, dtype=kind, device=device)
    _multiply(rows, weight)  # the first one includes setting up
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < _SECONDS:
        _multiply(rows, weight)
        done += 1
    return done * 2 * _ROWS * _IN * _IN / spent


def _fastest(dtype: str, threads: int) -> Kernel:
    rates = _rates(dtype, threads)
    chosen: Kernel = "native"
    for kernel in rates:
        chosen = kernel if rates[kernel] > _GAIN * rates[chosen] else chosen
    return chosen


@cache
def _rates(
    dtype: str, threads: int
) -> dict[Kernel, float]:  # another number of threads, another answer
    seconds = _seconds(dtype, available(_KINDS[dtype]))
    return {kernel: 2 * _ROWS * _IN * _OUT / taken for kernel, taken in seconds.items()}


@torch.inference_mode()
def _seconds(dtype: str, kernels: Sequence[Kernel]) -> dict[Kernel, float]:
    """The least of a few times in turn, so that a slow moment of the machine meets all."""
    x, weight = (torch.ones(n, _IN, dtype=_KINDS[dtype]) for n in (_ROWS, _OUT))
    modes = {kernel: Products({dtype: kernel}) for kernel in kernels}
    taken = dict.fromkeys(kernels, float("inf"))
    for turn in range(_TIMES + 1):
        for kernel, mode in modes.items():
            start = time.perf_counter()
            with mode:
                torch.nn.functional.linear(x, weight)
            if turn:  # the first one includes setting up
                taken[kernel] = min(taken[kernel], time.perf_counter() - start)
    return taken


def _multiply(rows: torch.Tensor, weight: torch.Tensor) -> None:
    (rows @ weight.T)[0, 0].item()  # reading a value waits for devices that compute on their own
