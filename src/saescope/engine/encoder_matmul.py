"""The encoder's product on a GPU, tried against the CPU before it is used.

bfloat16 residuals are multiplied on tensor cores: a float32 weight is the sum of three bfloat16, so three products with
float32 sums and outputs give what a float32 product gives, up to the order of sums. Where torch has no such product,
and for float32 residuals, it is torch's float32 product.
"""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from saescope.errors import ResourceError, first_line

Product = Callable[
    [Tensor, Tensor, Tensor, Tensor], None
]  # x, weight, bias, and where the result is written
_ROWS, _IN, _OUT, _K = 48, 256, 4096, 51


def by_parts(
    x: Float[Tensor, "n d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, "d_out"],
    out: Float[Tensor, "n d_out"],
) -> None:
    """x · weightᵀ + bias in float32 of bfloat16 x and float32 weights."""
    out.copy_(bias.expand_as(out))
    rest = weight
    for _ in range(3):
        part = rest.bfloat16()
        rest = rest - part.float()
        out.add_(torch.mm(x, part.T, out_dtype=torch.float32))


def in_float32(
    x: Float[Tensor, "n d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, "d_out"],
    out: Float[Tensor, "n d_out"],
) -> None:
    """x · weightᵀ + bias by torch's float32 product."""
    torch.addmm(bias, x.float(), weight.T, out=out)


def encoder_product(device: torch.device, dtype: torch.dtype) -> Product:
    """The product for residuals of this dtype; raises ResourceError where the device's results are wrong."""
    return in_float32 if device.type == "cpu" else _tried(device, dtype)


@cache
def _tried(device: torch.device, dtype: torch.dtype) -> Product:
    if device.type == "cuda" and dtype == torch.bfloat16 and is_right(by_parts, device, dtype):
        return by_parts
    if not is_right(in_float32, device, dtype):
        raise ResourceError(
            f"this torch has no float32 matrix product on {device}: use --device cpu"
        )
    return in_float32


@torch.inference_mode()
def is_right(product: Product, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device has this product; raises ResourceError where it, or its top k, is not what the CPU finds."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, _IN, generator=random).to(dtype)
    weight, bias = torch.randn(_OUT, _IN, generator=random), torch.randn(_OUT, generator=random)
    found = torch.empty(_ROWS, _OUT, device=device)
    try:
        product(x.to(device), weight.to(device), bias.to(device), found)
    except (
        NotImplementedError,
        TypeError,
        RuntimeError,
    ) as error:  # how torch says that it has no such operator
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False
    exact = functional.linear(x.double(), weight.double(), bias.double())
    sizes = functional.linear(x.double().abs(), weight.double().abs(), bias.double().abs())
    if not ((found.cpu().double() - exact).abs() <= 2 * _IN * 2**-24 * sizes).all():
        raise ResourceError(
            f"{device} multiplies float32 matrices less exactly than the CPU (TF32 switched on, or a faulty driver), "
            "which changes features: switch it off, or use --device cpu"
        )
    _check_top_k(found)
    return True


def _check_top_k(values: Float[Tensor, "n d"]) -> None:
    try:
        top = torch.topk(values, _K, dim=-1, sorted=True)
        right = torch.equal(
            top.values.cpu(), torch.topk(values.cpu(), _K, dim=-1, sorted=True).values
        )
        right = right and torch.equal(values.gather(1, top.indices).cpu(), top.values.cpu())
    except (NotImplementedError, RuntimeError) as error:
        raise ResourceError(
            f"{values.device} has no top k ({first_line(error)}): use --device cpu"
        ) from error
    if not right:
        raise ResourceError(
            f"the top k that {values.device} finds is not the CPU's: use --device cpu"
        )
