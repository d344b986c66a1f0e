"""Measure the matmul rate of this machine, by every kernel that plain torch has for a dtype.

One measurement multiplies rows of residuals by each weight of one block. Prints operations per
second by kernel and number of rows.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.probes.options import probe_parser
from benchmarks.probes.timing import time_alternating
from benchmarks.shapes import MAIN, SHAPES

Matmul = Callable[[Tensor], Tensor]
_TIMES = 3


def main(shape: str, rows: Sequence[int], device: str) -> None:
    """Measure and print."""
    sizes = SHAPES[shape].matmuls()
    operations_per_row = sum(2 * out * width for out, width in sizes)
    rates: dict[str, float] = {}
    with torch.inference_mode():
        for dtype_name in ("bfloat16", "float32"):
            dtype = getattr(torch, dtype_name)
            weights = []
            for out, width in sizes:
                noise = torch.randn(out, width, dtype=dtype, device=device)
                weights.append(noise * width**-0.5)
            for kernel, matmuls in _kernels(weights).items():
                for n in rows:
                    seconds = _time_block(matmuls, weights, n)
                    rates[f"{dtype_name}, {kernel}, {n} rows"] = n * operations_per_row / seconds
    print(json.dumps({"rates": rates}))


def _time_block(matmuls: Sequence[Matmul], weights: Sequence[Tensor], n: int) -> float:
    """The shortest time in seconds of all matmuls of a block with `n` rows."""
    inputs: dict[int, Tensor] = {}
    for weight in weights:
        width = weight.shape[1]
        inputs[width] = torch.randn(n, width, dtype=weight.dtype, device=weight.device)

    def run() -> None:
        for matmul, weight in zip(matmuls, weights, strict=True):
            matmul(inputs[weight.shape[1]])
        if weights[0].device.type == "cuda":
            torch.cuda.synchronize()

    return min(time_alternating({"block": run}, _TIMES)["block"])


def _kernels(weights: Sequence[Tensor]) -> dict[str, list[Matmul]]:
    """Kernels for these weights, prepared: a weight is reordered here, not while timed."""
    kernels: dict[str, list[Matmul]] = {"linear": [partial(linear, weight=w) for w in weights]}
    if weights[0].device.type != "cpu":
        return kernels
    packed = _packed_matmuls(weights)
    if packed is not None:
        kernels["oneDNN packed"] = packed
    if weights[0].dtype == torch.bfloat16:
        converted: list[Matmul] = [partial(_converting_matmul, weight=w) for w in weights]
        kernels["converted to float32 each time"] = converted
    return kernels


def _converting_matmul(rows: Tensor, weight: Tensor) -> Tensor:
    return linear(rows.float(), weight.float()).to(rows.dtype)


def _packed_matmuls(weights: Sequence[Tensor]) -> list[Matmul] | None:
    """oneDNN's matmul with weights in its own layout, by the operators of torch's compiler."""
    try:
        return [_packed_matmul(weight) for weight in weights]
    except (AttributeError, RuntimeError, NotImplementedError):  # this torch has no such operators
        return None


def _packed_matmul(weight: Tensor) -> Matmul:
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight, 512)

    def matmul(rows: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, reordered, None, "none", [], "")
        return out

    matmul(torch.zeros(8, weight.shape[1], dtype=weight.dtype))
    return matmul


if __name__ == "__main__":
    parser = probe_parser("rates", __doc__)
    parser.add_argument("--shape", choices=SHAPES, default=MAIN)
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 2048])
    args = parser.parse_args()
    main(args.shape, args.rows, args.device)
