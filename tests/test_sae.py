"""Encoding and decoding by the definition, in blocks, in float32, whatever the activation."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tiny
from saescope.engine import sae as sae_module
from saescope.engine import topk
from saescope.engine.sae import Sae, SparseActs
from saescope.errors import ResourceError, SourceError
from saescope.sources.catalog import SaeSpec


def make(d_model: int = 32, d_sae: int = 256, k: int = 8) -> Sae:
    spec = SaeSpec("tiny", None, 0, d_model, d_sae, k, "topk", None, "")
    return Sae(spec, **tiny.sae_tensors(d_model, d_sae))


def test_encode_by_the_definition() -> None:
    sae, resid = make(), torch.randn(3, 5, 32)
    pre = resid.double() @ sae.W_enc.double().T + sae.b_enc.double()
    top = pre.topk(8)
    sparse = sae.encode(resid)
    assert sparse.acts.shape == sparse.ids.shape == (3, 5, 8)
    torch.testing.assert_close(sparse.acts, top.values.relu().float(), atol=1e-5, rtol=1e-5)
    assert torch.equal(sparse.ids, top.indices)


def test_fewer_than_k_positive_leaves_zeros() -> None:
    sae = make()
    low = Sae(sae.spec, sae.W_enc, sae.b_enc - 3.0)
    acts = low.encode(torch.randn(50, 32)).acts
    assert (acts >= 0).all()
    assert (acts == 0).any()
    assert (acts.diff(dim=-1) <= 0).all()


def test_bfloat16_residuals_are_encoded_in_float32() -> None:
    sae, resid = make(), torch.randn(20, 32).bfloat16()
    assert torch.equal(sae.encode(resid).acts, sae.encode(resid.float()).acts)
    assert sae.encode(resid).acts.dtype == torch.float32


@pytest.mark.slow
@given(rows=st.integers(0, 40), block=st.integers(1, 50))
def test_blocks_change_nothing(rows: int, block: int) -> None:
    sae, resid = make(), torch.randn(rows, 32)
    whole = sae.encode(resid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "ENCODE_BLOCK", block * 4 * 32)
        patch.setattr(topk, "_MIN_COLUMNS", 32)
        patch.setattr(topk, "_MAX_ROWS", block)
        in_blocks = sae.encode(resid)
        torch.testing.assert_close(sae.decode(in_blocks), sae.decode(whole), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(in_blocks.acts, whole.acts, atol=1e-5, rtol=1e-5)


def test_decode_equals_the_dense_matmul_with_bias() -> None:
    sae = make()
    sparse = sae.encode(torch.randn(6, 32))
    dense = torch.zeros(6, 256).scatter(1, sparse.ids, sparse.acts)
    torch.testing.assert_close(
        sae.decode(sparse), dense @ sae.W_dec.T + sae.b_dec, atol=1e-5, rtol=1e-5
    )
    empty = SparseActs(torch.zeros(1, 8), torch.zeros(1, 8, dtype=torch.int64))
    torch.testing.assert_close(sae.decode(empty)[0], sae.b_dec)


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_one_residual_alone(activation: str) -> None:
    sae = make() if activation == "topk" else thresholded(activation)
    resid = torch.randn(32)
    sparse = sae.encode(resid)
    assert sparse.acts.shape == sparse.ids.shape == (sparse.ids.numel(),)
    torch.testing.assert_close(sae.decode(sparse), sae.decode(sae.encode(resid[None]))[0])


def test_wrong_width_and_missing_decoder_are_refused() -> None:
    sae = make()
    with pytest.raises(SourceError, match="31 wide"):
        sae.encode(torch.randn(2, 31))
    with pytest.raises(SourceError, match="without its decoder"):
        replace(sae, W_dec=None, b_dec=None).decode(sae.encode(torch.randn(2, 32)))


# --- thresholds instead of k


def thresholded(activation: str, n: int = 256) -> Sae:
    """As `make`, but thresholds decide; under a negative threshold, only positive values fire."""
    spec = SaeSpec("tiny", None, 0, 32, n, None, activation, None, "")
    threshold = None if activation == "relu" else torch.linspace(-0.5, 2.0, n)
    return Sae(spec, **tiny.sae_tensors(32, n), threshold=threshold)


def dense(sae: Sae, resid: Tensor) -> Tensor:
    """Activations by the definition, (tokens, d_sae), in float64."""
    pre = resid.double() @ sae.W_enc.double().T + sae.b_enc.double()
    floor = 0 if sae.threshold is None else sae.threshold.clamp(min=0)
    return torch.where(pre > floor, pre, 0.0).float()


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["jumprelu", "batchtopk", "relu"])
@given(rows=st.integers(0, 30), block=st.integers(1, 40), seed=st.integers(0, 99))
def test_thresholds_by_the_definition(activation: str, rows: int, block: int, seed: int) -> None:
    sae = thresholded(activation)
    resid = torch.randn(rows, 32, generator=torch.Generator().manual_seed(seed))
    resid[:1] *= 20  # one that fires far more
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sae_module, "ENCODE_BLOCK", block * 4 * sae.spec.d_sae)
        sparse, next_pre_act = sae.encode_with_next(resid)
        widths = [part.acts.shape[1] for part, _ in sae.encode_chunks(resid)]
        decoded = sae.decode(sparse)
    expected = dense(sae, resid)
    assert (
        sparse.acts.shape[1]
        == max(widths, default=0)
        == int((expected > 0).sum(1).max() if rows else 0)
    )
    assert (sparse.acts.diff(dim=-1) <= 0).all()
    rebuilt = torch.zeros(rows, 256).scatter_add(1, sparse.ids, sparse.acts)
    torch.testing.assert_close(rebuilt, expected, atol=1e-5, rtol=1e-5)
    silent = (
        torch.where(expected > 0, -torch.inf, sae.pre_acts(resid)).amax(-1)
        if rows
        else torch.zeros(0)
    )
    torch.testing.assert_close(next_pre_act, silent, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoded, expected @ sae.W_dec.T + sae.b_dec, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", ["topk", "jumprelu", "relu"])
def test_fires_is_what_encode_says(activation: str) -> None:
    sae = make() if activation == "topk" else thresholded(activation)
    resid, ids = torch.randn(4, 9, 32), torch.tensor([3, 255, 77, 3])
    sparse = sae.encode(resid)
    expected = torch.zeros(4, 9, 256).scatter_add(2, sparse.ids, sparse.acts)[..., ids] > 0
    assert torch.equal(sae.fires(resid, ids), expected)


def test_nothing_and_everything_may_fire() -> None:
    sae = thresholded("jumprelu")
    never = replace(sae, threshold=torch.full((256,), 1e6))
    sparse, next_pre_act = never.encode_with_next(torch.randn(2, 3, 32))
    assert sparse.acts.shape == (2, 3, 0)
    assert torch.isfinite(next_pre_act).all()
    torch.testing.assert_close(never.decode(sparse)[1, 2], sae.b_dec)
    always = replace(sae, b_enc=torch.full((256,), 1e3))
    sparse, next_pre_act = always.encode_with_next(torch.randn(2, 3, 32))
    assert sparse.acts.shape == (2, 3, 256)
    assert next_pre_act.isnan().all()


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("activation", ["topk", "jumprelu", "relu"])
def test_residuals_that_are_not_finite_are_refused(activation: str, value: str) -> None:
    sae = make() if activation == "topk" else thresholded(activation)
    resid = torch.randn(5, 32)
    resid[3, 4] = float(value)
    with pytest.raises(SourceError, match="not finite"):
        sae.encode(resid)


def test_rows_that_would_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sae_module, "_MAX_ENTRIES", 1000)
    sae, resid = thresholded("relu"), torch.randn(40, 32)
    with pytest.raises(ResourceError, match=r"one of 40 residuals activates \d+ features"):
        sae.encode(resid)
    assert sum(len(next_pre_act) for _, next_pre_act in sae.encode_chunks(resid)) == 40
