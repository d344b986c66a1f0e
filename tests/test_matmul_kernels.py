"""All kernels agree up to the order of sums; other threads keep their own kernels."""

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tiny
from saescope.engine import matmul_kernels
from saescope.engine.extract import choose_job_kernels, extract
from saescope.engine.lm import load_lm
from saescope.engine.load import load_sae
from saescope.engine.matmul_kernels import LEAST_ROWS, Kernel, KernelMode, available_kernels
from saescope.sources.prompts import texts

# Beginnings differ, so that no prefix is shared: streamed models share none.
LONG = [f"{n}{text} {text}" for n in range(6) for text in tiny.TEXTS]


def rounding(x: Tensor, weight: Tensor) -> Tensor:
    """How far two orders of a float32 sum may differ: length * 2**-24 * sum of absolute terms."""
    return x.shape[-1] * 2**-24 * (x.float().abs() @ weight.float().abs().T)


@pytest.mark.parametrize("kernel", available_kernels(torch.bfloat16))
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(LEAST_ROWS, 300, 5000), (3, 70, 33, 64), (0, 8, 8)])
def test_bfloat16_differs_by_the_order_of_sums(
    kernel: Kernel, bias: bool, shape: tuple[int, ...]
) -> None:
    random = torch.Generator().manual_seed(0)
    *rows, d_in, d_out = shape
    layer = nn.Linear(d_in, d_out, bias=bias).bfloat16().requires_grad_(False)
    x = torch.randn(*rows, d_in, generator=random).bfloat16()
    with KernelMode({"bfloat16": kernel}):
        product = layer(x)
    exact = functional.linear(
        x.double(), layer.weight.double(), layer.bias.double() if bias else None
    )
    assert product.shape == exact.shape
    assert product.dtype == torch.bfloat16
    # Rounded once: half of bfloat16's step, and what the order of the sum may change.
    allowed = exact.abs() * 2**-8 + 2 * rounding(x, layer.weight) + 1e-6
    assert ((product.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("kernel", available_kernels(torch.float32))
def test_float32_differs_by_the_order_of_sums(kernel: Kernel) -> None:
    x, weight, bias = torch.randn(200, 300), torch.randn(70, 300), torch.randn(70)
    with KernelMode({"float32": kernel}):
        product = functional.linear(x, weight, bias)
    exact = functional.linear(x.double(), weight.double(), bias.double())
    assert ((product.double() - exact).abs() <= rounding(x, weight) + 1e-6).all()


@pytest.mark.parametrize("kernel", available_kernels(torch.float32))
def test_encoders_multiply_by_the_kernel_into_their_place(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Kernel] = []

    def noted(x: Tensor, weight: Tensor, bias: Tensor, kernel: Kernel) -> Tensor:
        used.append(kernel)
        return original(x, weight, bias, kernel)

    original = matmul_kernels.matmul
    monkeypatch.setattr(matmul_kernels, "matmul", noted)
    x, weight, bias = torch.randn(200, 300), torch.randn(70, 300), torch.randn(70)
    place = torch.zeros(200, 90)
    with KernelMode({"float32": kernel}):
        torch.addmm(bias, x, weight.T, out=place[:, 10:80])
        product = torch.addmm(bias, x, weight.T)
        assert used == ([] if kernel == "native" else [kernel] * 2)
        # A factor, and GPT-2's layout.
        others = (
            torch.addmm(bias, x, weight.T, alpha=2),
            torch.addmm(bias, x, weight.T.contiguous()),
        )
    assert used == ([] if kernel == "native" else [kernel] * 2)
    exact = functional.linear(x.double(), weight.double(), bias.double())
    for computed, factor in ((place[:, 10:80], 1), (product, 1), (others[0], 2), (others[1], 1)):
        expected = bias + factor * (exact - bias)
        assert ((computed.double() - expected).abs() <= factor * (rounding(x, weight) + 1e-5)).all()
    assert not place[:, :10].any()
    assert not place[:, 80:].any()


def test_few_rows_and_other_threads_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    row_counts: list[int] = []

    def counted(x: Tensor, *rest: object) -> Tensor:
        row_counts.append(len(x))
        return original(x, *rest)  # type: ignore[arg-type]

    original = matmul_kernels.matmul
    monkeypatch.setattr(matmul_kernels, "matmul", counted)
    weight = torch.randn(8, 8).bfloat16()
    many_rows = torch.randn(LEAST_ROWS, 8).bfloat16()
    with KernelMode({"bfloat16": "blas"}):
        few_rows = functional.linear(many_rows[:-1], weight)
        functional.linear(many_rows.float(), weight.float())
        other = threading.Thread(target=functional.linear, args=(many_rows, weight))
        other.start()
        other.join()
        assert row_counts == []
        functional.linear(many_rows, weight)
    functional.linear(many_rows, weight)
    assert row_counts == [LEAST_ROWS]
    assert torch.equal(few_rows, functional.linear(many_rows[:-1], weight))


def test_little_work_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESCOPE_CACHE", str(tmp_path / "cache"))
    lm = load_lm(tiny.save_model(tmp_path / "model"), [1])
    assert choose_job_kernels(lm, 20) == {"float32": "native"}
    monkeypatch.setattr(matmul_kernels, "_WORTH_MEASURING", 0)
    monkeypatch.setattr(
        matmul_kernels,
        "_rates",
        lambda dtype, threads: {"native": 1.0, "onednn": 1.16, "blas": 1.3},
    )
    assert choose_job_kernels(lm, 20) == {"float32": "onednn"}
    assert choose_job_kernels(lm, 20, {"float32": "native"}) == {"float32": "native"}
    # Float32 has no such kernel.
    assert choose_job_kernels(lm, 20, {"float32": "blas"}) == {"float32": "onednn"}


@pytest.mark.slow
@pytest.mark.parametrize("kernel", available_kernels(torch.bfloat16))
def test_streamed_equals_cut_with_every_kernel(kernel: Kernel, tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", dtype=torch.bfloat16)
    saes = [load_sae(tiny.save_sae(tmp_path / "sae"), layer) for layer in (0, 2)]
    kernels: matmul_kernels.Kernels = {"bfloat16": kernel, "float32": "native"}
    runs = [
        extract(
            load_lm(model, [2], streamed=streamed),
            saes,
            texts(LONG),
            tmp_path / str(streamed),
            kernels=kernels,
        )
        for streamed in (False, True)
    ]
    assert runs[0].manifest["kernels"] == kernels
    assert runs[0].manifest["tables"] == runs[1].manifest["tables"]


def test_a_partial_run_of_other_kernels_is_not_taken_up(tmp_path: Path) -> None:
    lm = load_lm(tiny.save_model(tmp_path / "model", dtype=torch.bfloat16), [0, 1])
    saes = [load_sae(tiny.save_sae(tmp_path / "sae"), layer) for layer in (0, 1)]
    begun: matmul_kernels.Kernels = {"bfloat16": "blas", "float32": "native"}

    def stop(done: int, total: int) -> None:
        if done < total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(lm, saes, texts(LONG), tmp_path / "run", kernels=begun, progress=stop)
    counted: dict[str, list[int]] = {"run": [], "whole": []}
    run, whole = (
        extract(
            lm,
            saes,
            texts(LONG),
            tmp_path / name,
            progress=lambda done, _, steps=steps: steps.append(done),
        )
        for name, steps in counted.items()
    )
    assert run.manifest["kernels"] == {"bfloat16": "native", "float32": "native"}
    assert run.manifest["tables"] == whole.manifest["tables"]
    assert counted["run"] == counted["whole"]
    assert run.manifest["fingerprint"] == whole.manifest["fingerprint"]


def test_a_choice_is_kept_so_that_the_same_job_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAESCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(matmul_kernels, "_WORTH_MEASURING", 0)
    lm = load_lm(tiny.save_model(tmp_path / "model"), [1])
    for onednn in (2.0, 1.0):  # the second measurement would choose otherwise
        rates = {"native": 1.0, "onednn": onednn}
        monkeypatch.setattr(matmul_kernels, "_rates", lambda dtype, threads, of=rates: of)
        assert choose_job_kernels(lm, 20) == {"float32": "onednn"}


def test_rates_are_measured_for_every_kernel() -> None:
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        rates = matmul_kernels._rates(name, torch.get_num_threads())
        assert tuple(rates) == available_kernels(dtype)
        assert min(rates.values()) > 1e6
        assert matmul_kernels.matmul_rate(name, "cpu") == max(rates.values())
