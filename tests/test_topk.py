"""The k largest values are exact and do not depend on blocks, also with ties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saescope.engine import topk
from saescope.engine.topk import largest, largest_products


def by_definition(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    ordered = torch.sort(values, dim=-1, descending=True, stable=True)
    return ordered.values[:, :k], ordered.indices[:, :k]


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(0, 5),
    d=st.sampled_from([1, 7, 31, 32, 200, 4096, 8192]),
    k=st.integers(1, 60),
    distinct=st.sampled_from([1, 2, 30, 10**6]),
    seed=st.integers(0, 10**6),
)
def test_largest_by_definition(n: int, d: int, k: int, distinct: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    values = torch.randint(-distinct, distinct, (n, d), generator=random) / 7
    top = largest(values, k)
    expected = by_definition(values, k)
    assert torch.equal(top.values, expected[0])
    assert torch.equal(top.ids, expected[1])


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(0, 9),
    d=st.integers(1, 300),
    k=st.integers(1, 70),
    rows=st.integers(1, 9),
    columns=st.integers(1, 200),
    seed=st.integers(0, 10**6),
)
def test_blocks_do_not_matter(n: int, d: int, k: int, rows: int, columns: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    # Small whole numbers: products are exact and often equal.
    x, weight = (torch.randint(-2, 3, (m, 4), generator=random).float() for m in (n, d))
    bias = torch.randint(-1, 2, (d,), generator=random).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "_MAX_ROWS", rows)
        patch.setattr(topk, "_MIN_COLUMNS", columns)
        patch.setattr(topk, "_MATMUL_COLUMNS", 1 + columns // 2)
        patch.setattr(topk, "ENCODE_BLOCK", 0)
        top = largest_products(x, weight, bias, min(k, d))
    expected = by_definition(x @ weight.T + bias, min(k, d))
    assert torch.equal(top.values, expected[0])
    assert torch.equal(top.ids, expected[1])


def test_top_k_keeps_nan() -> None:
    values = torch.randn(3, 4096)
    values[1, 4000] = torch.nan
    assert largest(values, 8).values.isnan().any(-1).tolist() == [False, True, False]
