"""The encoder's matmul on a GPU, compared with the CPU before it is used.

bfloat16 residuals are multiplied on tensor cores: a float32 weight is the sum of three bfloat16
parts, so three matmuls with float32 sums and outputs give what a float32 matmul gives, up to the
order of sums. For float32 residuals, or if torch has no such matmul, it is torch's float32 matmul.
"""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from saescope.errors import ResourceError, first_line

# Takes x, weight and bias, and the tensor to write into.
EncoderMatmul = Callable[[Tensor, Tensor, Tensor, Tensor], None]
# The sizes that are compared.
_ROWS = 48
_D_IN = 256
_D_OUT = 4096
_K = 51


def encoder_matmul(device: torch.device, dtype: torch.dtype) -> EncoderMatmul:
    """Return the matmul for this dtype; raise ResourceError if the device's results are wrong."""
    if device.type == "cpu":
        return float32_matmul
    return _checked_matmul(device, dtype)


def split_matmul(
    x: Float[Tensor, "n d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, "d_out"],
    out: Float[Tensor, "n d_out"],
) -> None:
    """x · weightᵀ + bias in float32, of bfloat16 x and float32 weights split into three parts."""
    out.copy_(bias.expand_as(out))
    rest = weight
    for _ in range(3):
        part = rest.bfloat16()
        rest = rest - part.float()
        out.add_(torch.mm(x, part.T, out_dtype=torch.float32))


def float32_matmul(
    x: Float[Tensor, "n d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, "d_out"],
    out: Float[Tensor, "n d_out"],
) -> None:
    """x · weightᵀ + bias by torch's float32 matmul."""
    torch.addmm(bias, x.float(), weight.T, out=out)


@cache
def _checked_matmul(device: torch.device, dtype: torch.dtype) -> EncoderMatmul:
    can_split = device.type == "cuda" and dtype == torch.bfloat16
    if can_split and matches_cpu(split_matmul, device, dtype):
        return split_matmul
    if not matches_cpu(float32_matmul, device, dtype):
        raise ResourceError(f"this torch has no float32 matmul on {device}: pass device=cpu")
    return float32_matmul


@torch.inference_mode()
def matches_cpu(matmul: EncoderMatmul, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device has this matmul.

    Raises ResourceError if its result, or its top k, is not what the CPU finds.
    """
    random = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, _D_IN, generator=random).to(dtype)
    weight = torch.randn(_D_OUT, _D_IN, generator=random)
    bias = torch.randn(_D_OUT, generator=random)
    out = torch.empty(_ROWS, _D_OUT, device=device)
    try:
        matmul(x.to(device), weight.to(device), bias.to(device), out)
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, TypeError, RuntimeError):
        return False  # how torch says that it has no such operator
    exact = functional.linear(x.double(), weight.double(), bias.double())
    sizes = functional.linear(x.double().abs(), weight.double().abs(), bias.double().abs())
    largest_error = 2 * _D_IN * 2**-24 * sizes
    if not ((out.cpu().double() - exact).abs() <= largest_error).all():
        raise ResourceError(
            f"{device} multiplies float32 matrices less exactly than the CPU (TF32 switched on, "
            "or a faulty driver), which changes features: switch it off, or pass device=cpu"
        )
    _check_top_k(out)
    return True


def _check_top_k(values: Float[Tensor, "n d"]) -> None:
    try:
        top = torch.topk(values, _K, dim=-1, sorted=True)
        expected = torch.topk(values.cpu(), _K, dim=-1, sorted=True).values
        gathered = values.gather(1, top.indices).cpu()
    except (NotImplementedError, RuntimeError) as error:
        raise ResourceError(
            f"{values.device} has no top k ({first_line(error)}): pass device=cpu"
        ) from error
    values = top.values.cpu()
    if not torch.equal(values, expected) or not torch.equal(gathered, values):
        raise ResourceError(
            f"the top k that {values.device} finds is not the CPU's: pass device=cpu"
        )
