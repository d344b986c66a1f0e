"""Encoding and decoding by the definition, in blocks, in float32."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from saescope.engine import topk
from saescope.engine.sae import SparseActs, TopKSae
from saescope.errors import SourceError
from saescope.sources.catalog import SaeSpec


def make(d_model: int = 32, d_sae: int = 256, k: int = 8) -> TopKSae:
    spec = SaeSpec("tiny", None, 0, d_model, d_sae, k, "topk", None, "")
    return TopKSae(spec, **tiny.sae_tensors(d_model, d_sae))


def test_encode_by_the_definition() -> None:
    sae, resid = make(), torch.randn(3, 5, 32)
    pre = resid.double() @ sae.W_enc.double().T + sae.b_enc.double()
    top = pre.topk(8)
    found = sae.encode(resid)
    assert found.acts.shape == found.ids.shape == (3, 5, 8)
    torch.testing.assert_close(found.acts, top.values.relu().float(), atol=1e-5, rtol=1e-5)
    assert torch.equal(found.ids, top.indices)


def test_fewer_than_k_positive_leaves_zeros() -> None:
    sae = make()
    low = TopKSae(sae.spec, sae.W_enc, sae.b_enc - 3.0)
    acts = low.encode(torch.randn(50, 32)).acts
    assert (acts >= 0).all()
    assert (acts == 0).any()
    assert (acts.diff(dim=-1) <= 0).all()


def test_bfloat16_residuals_are_encoded_in_float32() -> None:
    sae, resid = make(), torch.randn(20, 32).bfloat16()
    assert torch.equal(sae.encode(resid).acts, sae.encode(resid.float()).acts)
    assert sae.encode(resid).acts.dtype == torch.float32


@given(rows=st.integers(0, 40), block=st.integers(1, 50))
def test_blocks_change_nothing(rows: int, block: int) -> None:
    sae, resid = make(), torch.randn(rows, 32)
    whole = sae.encode(resid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "ENCODE_BLOCK", block * 4 * 32)
        patch.setattr(topk, "_LEAST_COLUMNS", 32)
        patch.setattr(topk, "_MOST_ROWS", block)
        parts = sae.encode(resid)
        torch.testing.assert_close(sae.decode(parts), sae.decode(whole), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.acts, whole.acts, atol=1e-5, rtol=1e-5)


def test_decode_is_the_dense_product_with_bias() -> None:
    sae = make()
    found = sae.encode(torch.randn(6, 32))
    dense = torch.zeros(6, 256).scatter(1, found.ids, found.acts)
    torch.testing.assert_close(sae.decode(found), dense @ sae.W_dec.T + sae.b_dec, atol=1e-5, rtol=1e-5)
    nothing = SparseActs(torch.zeros(1, 8), torch.zeros(1, 8, dtype=torch.int64))
    torch.testing.assert_close(sae.decode(nothing)[0], sae.b_dec)


def test_wrong_width_and_missing_decoder_are_refused() -> None:
    sae = make()
    with pytest.raises(SourceError, match="31 wide"):
        sae.encode(torch.randn(2, 31))
    with pytest.raises(SourceError, match="without its decoder"):
        replace(sae, W_dec=None, b_dec=None).decode(sae.encode(torch.randn(2, 32)))
