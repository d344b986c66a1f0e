"""How fast this machine multiplies: the products of one block, by every path that plain torch has for a dtype.

Rows of residuals times each of the block's weights, one after the other. Prints operations a second by path and rows.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.probes.turns import in_turn
from benchmarks.shapes import SHAPES

Product = Callable[[Tensor], Tensor]
_TIMES = 3


def main(shape: str, rows: Sequence[int], device: str) -> None:
    """Measure and print."""
    sizes = SHAPES[shape].products()
    operations = sum(2 * out * width for out, width in sizes)
    found: dict[str, float] = {}
    with torch.inference_mode():
        for dtype in ("bfloat16", "float32"):
            kind = getattr(torch, dtype)
            weights = [
                torch.randn(size, dtype=kind, device=device) * size[1] ** -0.5 for size in sizes
            ]
            for path, products in _paths(weights, dtype).items():
                for n in rows:
                    given = {
                        w.shape[1]: torch.randn(n, w.shape[1], dtype=w.dtype, device=device)
                        for w in weights
                    }
                    taken = in_turn(
                        {path: partial(_run, products, weights, given, device)}, _TIMES
                    )[path]
                    found[f"{dtype}, {path}, {n} rows"] = n * operations / min(taken)
    print(json.dumps({"rates": found}))


def _run(
    products: Sequence[Product], weights: Sequence[Tensor], given: dict[int, Tensor], device: str
) -> None:
    for product, weight in zip(products, weights, strict=True):
        product(given[weight.shape[1]])
    if device == "cuda":
        torch.cuda.synchronize()


def _paths(weights: Sequence[Tensor], dtype: str) -> dict[str, list[Product]]:
    """Ways to multiply by these weights; what is done to a weight once is done here."""
    paths: dict[str, list[Product]] = {"linear": [partial(linear, weight=w) for w in weights]}
    if weights[0].device.type == "cpu":
        if (packed := _packed(weights)) is not None:
            paths["oneDNN packed"] = packed
        if dtype == "bfloat16":
            paths["converted to float32 each time"] = [
                partial(_converted, weight=w) for w in weights
            ]
    return paths


def _converted(rows: Tensor, weight: Tensor) -> Tensor:
    return linear(rows.float(), weight.float()).to(rows.dtype)


def _packed(weights: Sequence[Tensor]) -> list[Product] | None:
    """oneDNN's product with weights in its own order, by operators torch's compiler uses; None without them."""
    try:
        return [_packed_one(weight) for weight in weights]
    except (AttributeError, RuntimeError, NotImplementedError):
        return None


def _packed_one(weight: Tensor) -> Product:
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight, 512)

    def product(rows: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, reordered, None, "none", [], "")
        return out

    product(torch.zeros(8, weight.shape[1], dtype=weight.dtype))
    return product


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probes.rates", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-1.7b")
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    main(given.shape, given.rows, given.device)
