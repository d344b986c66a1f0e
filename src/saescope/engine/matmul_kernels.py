"""The fastest of torch's matmuls for linear layers on this machine; nothing else changes.

bfloat16 values are float32 values, so a bfloat16 matmul with a float32 sum can also widen both
operands, multiply in float32 and round once: on a processor without bfloat16 units that is up to
twice as fast. Results differ from torch's own matmul as two orders of one sum do.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from saescope.sources.file_cache import recall, remember

# `native`: torch's linear with the operands as they are. `blas`: widened, torch's float32 matmul.
# `onednn`: widened, oneDNN's float32 matmul, which torch itself only uses for bfloat16.
Kernel = Literal["native", "blas", "onednn"]
Kernels = Mapping[str, Kernel]  # by the name of the weights' dtype; native for any other
NATIVE: Kernels = {}

# With fewer rows than this, widening a weight costs more than the faster matmul saves.
LEAST_ROWS = 128
# Weights are widened this much at a time: few enough values to stay in the processor's caches.
_TILE_VALUES = 4 * 2**20
_TILE_COLUMNS = 2048

# Below so many FLOPs, measuring which kernel is fastest takes longer than it saves.
_WORTH_MEASURING = 10**11
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# What is measured: the rows of a batch of short prompts, and a part of a layer's weights.
_ROWS = 512
_D_IN = 2048
_D_OUT = 512
_REPEATS = 2
# A kernel must be clearly faster than an earlier one: runs should not differ by chance.
_LEAST_SPEEDUP = 1.15
_SECONDS = 0.2
_CHOICES = "matmul-kernels"  # where measured choices are remembered


@final
class KernelMode(TorchFunctionMode):
    """Within `with KernelMode(kernels):`, linear layers and encoders of this thread use them.

    A mode leaves modules as they are, so other threads, which may generate with the same model,
    are not affected. Few rows, other devices and other dtypes are left to torch. Must not be held
    across a yield.
    """

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self._kernels = {getattr(torch, name): kernel for name, kernel in kernels.items()}
        self._buffers: dict[str, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        if func is functional.linear and len(args) >= 2 and not options:
            x, weight, bias = (*args, None)[:3]
            kernel = self._kernel_for(x, weight)
            if kernel != "native":
                out = self._linear(x.reshape(-1, x.shape[-1]), weight, bias, kernel)
                return out.view(*x.shape[:-1], len(weight))
        if func is torch.addmm and len(args) == 3 and options.keys() <= {"out"}:
            bias, x, transposed = args  # how encoders multiply
            if self._is_onednn_encoder(x, transposed):
                product = matmul(x, transposed.T, bias, "onednn")
                return options["out"].copy_(product) if "out" in options else product
        return func(*args, **options)

    def _kernel_for(self, x: Tensor, weight: Tensor) -> Kernel:
        has_enough_rows = x.numel() >= LEAST_ROWS * x.shape[-1]
        if x.device.type != "cpu" or x.dtype != weight.dtype or not has_enough_rows:
            return "native"
        return self._kernels.get(weight.dtype, "native")

    def _is_onednn_encoder(self, x: Tensor, transposed: Tensor) -> bool:
        if x.dtype != torch.float32 or not transposed.T.is_contiguous():
            return False
        return self._kernel_for(x, transposed) == "onednn"

    def _linear(
        self,
        x: Float[Tensor, "n d_in"],
        weight: Float[Tensor, "d_out d_in"],
        bias: Tensor | None,
        kernel: Kernel,
    ) -> Float[Tensor, "n d_out"]:
        if weight.dtype == torch.float32:
            return matmul(x, weight, bias, kernel)
        n, d_in = x.shape
        d_out = len(weight)
        wide_x = self._buffer("x", n, d_in).copy_(x)
        out = torch.empty(n, d_out, dtype=x.dtype)
        step = max(1, min(_TILE_COLUMNS, _TILE_VALUES // d_in))
        for start in range(0, d_out, step):
            columns = slice(start, min(start + step, d_out))
            width = columns.stop - start
            tile = self._buffer("weight", width, d_in).copy_(weight[columns])
            tile_bias = None if bias is None else bias[columns].float()
            out[:, columns] = matmul(wide_x, tile, tile_bias, kernel, self._buffer("out", n, width))
        return out

    def _buffer(self, name: str, rows: int, columns: int) -> Float[Tensor, "rows columns"]:
        """Memory that is reused: allocating it anew would cost a tenth of the time."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < rows * columns:
            buffer = self._buffers[name] = torch.empty(rows * columns)
        return buffer[: rows * columns].view(rows, columns)


def matmul(
    x: Float[Tensor, "n d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, "d_out"] | None,
    kernel: Kernel,
    out: Float[Tensor, "n d_out"] | None = None,
) -> Float[Tensor, "n d_out"]:
    """x · weightᵀ + bias of float32 tensors on the CPU; into `out` if the kernel can."""
    if kernel == "onednn":
        return _onednn()(x, weight, bias, "none", [], "")
    if bias is None:
        return torch.mm(x, weight.T, out=out)
    return torch.addmm(bias, x, weight.T, out=out)


def choose_kernels(
    dtypes: Sequence[str], device: str, flops: int, requested: Kernels | None = None
) -> Kernels:
    """Return the kernel for each dtype: the requested one if this machine has it.

    Otherwise it is the fastest, measured. Small jobs and other devices than the CPU get `native`
    unmeasured.
    """
    if requested is None and flops < _WORTH_MEASURING:
        return dict.fromkeys(dtypes, "native")
    chosen: dict[str, Kernel] = {}
    for dtype in dict.fromkeys(dtypes):
        kernel = None if requested is None else requested.get(dtype, "native")
        if kernel is not None and kernel in available_kernels(_DTYPES[dtype]):
            chosen[dtype] = kernel
        elif device == "cpu":
            chosen[dtype] = _fastest_here(dtype)
        else:
            chosen[dtype] = "native"
    return chosen


def available_kernels(dtype: torch.dtype) -> tuple[Kernel, ...]:
    """Return the kernels available for weights of this dtype, torch's default first."""
    kernels: list[Kernel] = ["native"]
    if dtype == torch.bfloat16:
        kernels.append("blas")
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        kernels.append("onednn")
    return tuple(kernels)


def _onednn() -> Callable[..., Tensor]:
    operator: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
    return operator


def matmul_rate(dtype: str, device: str) -> float:
    """Floating-point operations per second of the model's matmuls, measured in about 0.2 s."""
    if device == "cpu":
        return max(_rates(dtype, torch.get_num_threads()).values())
    rows = torch.ones(_ROWS, _D_IN, dtype=_DTYPES[dtype], device=device)
    weight = torch.ones(_D_IN, _D_IN, dtype=_DTYPES[dtype], device=device)
    _multiply_and_wait(rows, weight)  # the first one includes setting up
    n_done = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < _SECONDS:
        _multiply_and_wait(rows, weight)
        n_done += 1
    return n_done * 2 * _ROWS * _D_IN * _D_IN / elapsed


def _multiply_and_wait(rows: Tensor, weight: Tensor) -> None:
    (rows @ weight.T)[0, 0].item()  # reading a value waits for an asynchronous device


def _fastest_here(dtype: str) -> Kernel:
    """Return the fastest kernel of this machine, measured once: other kernels round differently."""
    threads = torch.get_num_threads()
    processor = torch.backends.cpu.get_cpu_capability()
    name = f"{torch.__version__} {processor} {dtype} {threads} threads"
    known = recall(_CHOICES)
    for kernel in available_kernels(_DTYPES[dtype]):
        if known.get(name) == kernel:
            return kernel
    fastest = _fastest(_rates(dtype, threads))
    remember(_CHOICES, {**known, name: fastest})
    return fastest


def _fastest(rates: Mapping[Kernel, float]) -> Kernel:
    fastest: Kernel = "native"
    for kernel, rate in rates.items():
        if rate > _LEAST_SPEEDUP * rates[fastest]:
            fastest = kernel
    return fastest


@cache
def _rates(dtype: str, threads: int) -> dict[Kernel, float]:
    """Operations per second of each kernel with this number of threads, once per process."""
    seconds = _seconds(dtype, available_kernels(_DTYPES[dtype]))
    return {kernel: 2 * _ROWS * _D_IN * _D_OUT / duration for kernel, duration in seconds.items()}


@torch.inference_mode()
def _seconds(dtype: str, kernels: Sequence[Kernel]) -> dict[Kernel, float]:
    """The shortest of a few times, the kernels in turn, so that a slow moment meets all."""
    x = torch.ones(_ROWS, _D_IN, dtype=_DTYPES[dtype])
    weight = torch.ones(_D_OUT, _D_IN, dtype=_DTYPES[dtype])
    modes = {kernel: KernelMode({dtype: kernel}) for kernel in kernels}
    shortest = dict.fromkeys(kernels, float("inf"))
    for repeat in range(_REPEATS + 1):
        for kernel, mode in modes.items():
            start = time.perf_counter()
            with mode:
                functional.linear(x, weight)
            if repeat > 0:  # the first one includes setting up
                shortest[kernel] = min(shortest[kernel], time.perf_counter() - start)
    return shortest
