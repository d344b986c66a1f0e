"""Products of linear layers by the fastest of torch's ways on this machine; all else of a model stays as it is.

bfloat16 values are float32 values, so a bfloat16 product with a float32 sum can also be had by widening both operands,
multiplying in float32 and rounding once: where a processor has no bfloat16 units that is up to twice as fast. Results
differ from torch's own product as two orders of one sum do. Knows neither models nor SAEs.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, final, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# `native`: torch's linear of the operands as they are. `blas`: widened, torch's float32 product.
# `onednn`: widened, oneDNN's float32 product, which torch itself only uses for bfloat16.
Kernel = Literal["native", "blas", "onednn"]
Kernels = Mapping[str, Kernel]  # by the name of the weights' dtype; native where it has none
NATIVE: Kernels = {}

# With fewer rows than this, widening a weight costs more than the faster product saves.
LEAST_ROWS = 128
# Weights are widened this much at a time: few enough values to stay in the processor's caches.
_TILE_VALUES = 4 * 2**20
_TILE_COLUMNS = 2048

# Below so many operations, measuring which product is fastest takes longer than it saves.
_WORTH_MEASURING = 10**11
_KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# The rows of a batch of short prompts, and a part of a layer's weights.
_ROWS, _IN, _OUT = 512, 2048, 512
_TIMES = 2
# A kernel is taken before one that stands earlier only where it is clearly faster: runs should not differ by chance.
_GAIN = 1.15
_SECONDS = 0.2


@final
class KernelMode(TorchFunctionMode):
    """Within `with KernelMode(kernels):` this thread's linear layers and encoders use the kernel of their weights' dtype.

    A mode and no change of modules: other threads, which may generate with the same model, notice nothing. Few rows,
    other devices and other dtypes are left to torch. Not to be held across a yield.
    """

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self._kernels = {getattr(torch, name): kernel for name, kernel in kernels.items()}
        self._buffers: dict[str, Tensor] = {}

    @no_type_check  # sees every torch operation: checking its types in tests took half their time
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.linear or func is torch.addmm:
            return self._multiply(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _multiply(
        self, func: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any]
    ) -> Any:
        if func is functional.linear and len(args) >= 2 and not given:
            x, weight, bias = (*args, None)[:3]
            if (kernel := self._kernel(x, weight)) != "native":
                flat = self._linear(x.reshape(-1, x.shape[-1]), weight, bias, kernel)
                return flat.view(*x.shape[:-1], len(weight))
        if (
            func is torch.addmm and len(args) == 3 and given.keys() <= {"out"}
        ):  # how encoders multiply
            bias, x, turned = args
            if (
                x.dtype == torch.float32
                and turned.T.is_contiguous()
                and self._kernel(x, turned) == "onednn"
            ):
                made = matmul(x, turned.T, bias, "onednn")
                return given["out"].copy_(made) if "out" in given else made
        return func(*args, **given)

    def _kernel(self, x: Tensor, weight: Tensor) -> Kernel:
        enough = (
            x.device.type == "cpu"
            and x.dtype == weight.dtype
            and x.numel() >= LEAST_ROWS * x.shape[-1]
        )
        return self._kernels.get(weight.dtype, "native") if enough else "native"

    def _linear(
        self,
        x: Float[Tensor, "n d_in"],
        weight: Float[Tensor, "d_out d_in"],
        bias: Tensor | None,
        kernel: Kernel,
    ) -> Float[Tensor, "n d_out"]:
        if weight.dtype == torch.float32:
            return matmul(x, weight, bias, kernel)
        (n, d_in), d_out = x.shape, len(weight)
        wide = self._buffer("x", n, d_in).copy_(x)
        out = torch.empty(n, d_out, dtype=x.dtype)
        step = max(1, min(_TILE_COLUMNS, _TILE_VALUES // d_in))
        for start in range(0, d_out, step):
            columns = slice(start, min(start + step, d_out))
            part = self._buffer("weight", columns.stop - start, d_in).copy_(weight[columns])
            own_bias = None if bias is None else bias[columns].float()
            out[:, columns] = matmul(
                wide, part, own_bias, kernel, self._buffer("out", n, len(part))
            )
        return out

    def _buffer(self, name: str, rows: int, columns: int) -> Float[Tensor, "rows columns"]:
        """Memory used again and again: asking the system for it anew would cost a tenth of the time."""
        held = self._buffers.get(name)
        if held is None or held.numel() < rows * columns:
            held = self._buffers[name] = torch.empty(rows * columns)
        return held[: rows * columns].view(rows, columns)


def matmul(
    x: Float[Tensor, "n d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, "d_out"] | None,
    kernel: Kernel,
    out: Float[Tensor, "n d_out"] | None = None,
) -> Float[Tensor, "n d_out"]:
    """x · weightᵀ + bias of float32 tensors on the CPU, into `out` if it is given and the kernel can."""
    if kernel == "onednn":
        return _onednn()(x, weight, bias, "none", [], "")
    if bias is None:
        return torch.mm(x, weight.T, out=out)
    return torch.addmm(bias, x, weight.T, out=out)


def available_kernels(dtype: torch.dtype) -> tuple[Kernel, ...]:
    """The kernels that this torch has for weights of this dtype; the first is its own."""
    widened: tuple[Kernel, ...] = ("blas",) if dtype == torch.bfloat16 else ()
    return ("native", *widened, *(("onednn",) if _has_onednn() else ()))


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _onednn() -> Callable[..., Tensor]:
    operator: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
    return operator


def choose_kernels(
    dtypes: Sequence[str], device: str, operations: int, asked: Kernels = NATIVE
) -> Kernels:
    """The kernels this work is computed by: those asked for, else the fastest, or torch's own where there is little."""
    if not asked and operations < _WORTH_MEASURING:
        return dict.fromkeys(dtypes, "native")
    return choose(dtypes, device, asked)


def choose(dtypes: Sequence[str], device: str, asked: Kernels = NATIVE) -> Kernels:
    """The kernel for the weights of each dtype on this device: the one asked for where it is there, else the fastest.

    Rates are measured once a process.
    """
    threads = torch.get_num_threads()
    chosen: dict[str, Kernel] = {}
    for dtype in dict.fromkeys(dtypes):
        if asked.get(dtype) in available_kernels(_KINDS[dtype]):
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
    seconds = _seconds(dtype, available_kernels(_KINDS[dtype]))
    return {kernel: 2 * _ROWS * _IN * _OUT / taken for kernel, taken in seconds.items()}


@torch.inference_mode()
def _seconds(dtype: str, kernels: Sequence[Kernel]) -> dict[Kernel, float]:
    """The least of a few times in turn, so that a slow moment of the machine meets all."""
    x, weight = (torch.ones(n, _IN, dtype=_KINDS[dtype]) for n in (_ROWS, _OUT))
    modes = {kernel: KernelMode({dtype: kernel}) for kernel in kernels}
    taken = dict.fromkeys(kernels, float("inf"))
    for turn in range(_TIMES + 1):
        for kernel, mode in modes.items():
            start = time.perf_counter()
            with mode:
                functional.linear(x, weight)
            if turn:  # the first one includes setting up
                taken[kernel] = min(taken[kernel], time.perf_counter() - start)
    return taken


def _multiply(rows: Tensor, weight: Tensor) -> None:
    (rows @ weight.T)[0, 0].item()  # reading a value waits for devices that compute on their own
