"""A device with a wrong matmul or top k is refused; one without the fast matmul falls back."""

import pytest
import torch
from torch import Tensor

from saescope.engine import encoder_matmul as encoder_matmul_module
from saescope.engine.encoder_matmul import (
    EncoderMatmul,
    encoder_matmul,
    float32_matmul,
    matches_cpu,
    split_matmul,
)
from saescope.errors import ResourceError

CPU = torch.device("cpu")


def widened_mm(a: Tensor, b: Tensor, *, out_dtype: torch.dtype) -> Tensor:
    """The product that this torch has on CUDA only."""
    return a.to(out_dtype) @ b.to(out_dtype)


def test_split_matmul_equals_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_matmul_module.torch, "mm", widened_mm)
    assert matches_cpu(split_matmul, CPU, torch.bfloat16)
    x, weight, bias = torch.randn(9, 300).bfloat16(), torch.randn(40, 300), torch.randn(40)
    ours, theirs = torch.empty(2, 9, 40)
    split_matmul(x, weight, bias, ours)
    float32_matmul(x, weight, bias, theirs)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_matmul_that_torch_lacks_does_not_match() -> None:
    assert not matches_cpu(split_matmul, CPU, torch.bfloat16)  # torch has it on CUDA alone
    assert matches_cpu(float32_matmul, CPU, torch.bfloat16)
    assert matches_cpu(float32_matmul, CPU, torch.float32)


def rounded(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    float32_matmul(x, weight.bfloat16().float(), bias, out)


def shifted(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    float32_matmul(x, weight, bias, out)
    out.copy_(out.roll(1, 0))


def not_a_number(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    out.fill_(torch.nan)


@pytest.mark.parametrize("wrong", [rounded, shifted, not_a_number])
def test_wrong_matmul_is_refused(wrong: EncoderMatmul) -> None:
    with pytest.raises(ResourceError, match="device=cpu"):
        matches_cpu(wrong, CPU, torch.float32)


def test_a_wrong_top_k_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.topk

    def wrong(*args: object, **options: object) -> object:
        top = right(*args, **options)  # type: ignore[call-overload]
        return torch.return_types.topk((top.values, top.indices.roll(1, 1)))

    monkeypatch.setattr(encoder_matmul_module.torch, "topk", wrong)
    with pytest.raises(ResourceError, match="top k"):
        matches_cpu(float32_matmul, CPU, torch.float32)


def test_the_cpu_is_not_tried() -> None:
    assert encoder_matmul(CPU, torch.bfloat16) is float32_matmul
