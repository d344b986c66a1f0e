"""Products of linear layers by the fastest of torch's ways on this machine; all else of a model stays as it is.

bfloat16 values are float32 values, so a bfloat16 product with a float32 sum can also be had by widening both operands,
multiplying in float32 and rounding once: where a processor has no bfloat16 units that is up to twice as fast. Results
differ from torch's own product as two orders of one sum do. Knows neither models nor SAEs.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, final

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


@final
class Products(TorchFunctionMode):
    """Within `with Products(kernels):` this thread's linear layers and encoders use the kernel of their weights' dtype.

    A mode and no change of modules: other threads, which may generate with the same model, notice nothing. Few rows,
    other devices and other dtypes are left to torch. Not to be held across a yield.
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
        given = kwargs or {}
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
                made = product(x, turned.T, bias, "onednn")
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
            return product(x, weight, bias, kernel)
        (n, d_in), d_out = x.shape, len(weight)
        wide = self._buffer("x", n, d_in).copy_(x)
        out = torch.empty(n, d_out, dtype=x.dtype)
        step = max(1, min(_TILE_COLUMNS, _TILE_VALUES // d_in))
        for start in range(0, d_out, step):
            columns = slice(start, min(start + step, d_out))
            part = self._buffer("weight", columns.stop - start, d_in).copy_(weight[columns])
            own_bias = None if bias is None else bias[columns].float()
            out[:, columns] = product(
                wide, part, own_bias, kernel, self._buffer("out", n, len(part))
            )
        return out

    def _buffer(self, name: str, rows: int, columns: int) -> Float[Tensor, "rows columns"]:
        """Memory used again and again: asking the system for it anew would cost a tenth of the time."""
        held = self._buffers.get(name)
        if held is None or held.numel() < rows * columns:
            held = self._buffers[name] = torch.empty(rows * columns)
        return held[: rows * columns].view(rows, columns)


def product(
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


def available(dtype: torch.dtype) -> tuple[Kernel, ...]:
    """The kernels that this torch has for weights of this dtype; the first is its own."""
    widened: tuple[Kernel, ...] = ("blas",) if dtype == torch.bfloat16 else ()
    return ("native", *widened, *(("onednn",) if _has_onednn() else ()))


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _onednn() -> Callable[..., Tensor]:
    operator: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
    return operator
