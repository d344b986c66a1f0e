"""A sample of residuals, reconstructed once per layer, to measure how well the SAE fits them.

Gathering single columns of a stored (d_model, d_sae) decoder touches nearly all of its pages. So
batches only keep their sampled residuals, and the decoder is read once, at the end.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from saescope.engine.input_norm import denormalise
from saescope.engine.pages import mapped_pages, release_pages, within
from saescope.engine.sae import Sae
from saescope.errors import SourceError
from saescope.store.arrays import Bools, Float32s, Indices
from saescope.store.sae_fit import MeasureFit, SaeFit, sample_tokens
from saescope.store.tables import LayerFeatures

# Rows of a (d_model, d_sae) decoder that are read at a time.
_ROWS = 64
# Features that may fire on the sample in all. If absurdly many fire, fewer tokens are measured.
_MAX_ENTRIES = 2**16


def fit_measurer(saes: Sequence[Sae], lengths: Sequence[int]) -> MeasureFit:
    """Return what measures a layer's fit from its features and its sampled residuals.

    `lengths` are those of all prompts. Features and residuals are in prompt order.
    """
    sae_of = {sae.spec.layer: sae for sae in saes}
    sample = sample_tokens(lengths)

    def measure(layer: int, features: LayerFeatures, resid: Float32s, scored: Bools) -> SaeFit:
        sampled = features.take(sample)
        measured = _affordable(sampled, np.flatnonzero(scored[sample]))
        h = resid[measured]
        reconstruction = _reconstruct(sae_of[layer], sampled.take(measured), h)
        return SaeFit.measure(features.counts[scored], h, reconstruction)

    return measure


def _affordable(features: LayerFeatures, tokens: Indices) -> Indices:
    """Return these tokens, or evenly spaced ones of them if too many features fire."""
    n_entries = int(features.counts[tokens].sum())
    return tokens[:: max(1, -(-n_entries // _MAX_ENTRIES))]


@torch.inference_mode()
def _reconstruct(sae: Sae, features: LayerFeatures, resid: Float32s) -> Float32s | None:
    """Return what the decoder makes of each residual's features; None without a decoder."""
    decoder = sae.decoder()
    if decoder is None:
        return None
    out = decoder.b_dec.float().expand(len(features.counts), -1)
    if len(features.ids):
        out = out + _decoded(decoder.W_dec, features)
    if not torch.isfinite(out).all():
        raise SourceError(
            f"the decoder of {sae.source or sae.spec.release}, layer {sae.spec.layer}, has values "
            "that are not finite: the file is damaged"
        )
    return denormalise(sae.input_norm, out, torch.from_numpy(resid).to(out.device)).cpu().numpy()


def _decoded(
    W_dec: Float[Tensor, "d_model d_sae"], features: LayerFeatures
) -> Float[Tensor, "n d_model"]:
    device = W_dec.device
    ids = torch.from_numpy(features.ids.astype(np.int64)).to(device)
    columns, places = ids.unique(return_inverse=True)
    acts = torch.from_numpy(features.acts).to(device)
    starts = torch.from_numpy(features.starts[:-1]).to(device)
    mapped = mapped_pages([W_dec])
    parts = []
    for rows in W_dec.split(_ROWS):
        weights = _columns_of(rows, columns)
        parts.append(embedding_bag(places, weights, starts, mode="sum", per_sample_weights=acts))
        if rows.is_contiguous():
            release_pages(within(mapped, rows))
    release_pages(mapped)
    return torch.cat(parts, dim=1)


def _columns_of(
    rows: Float[Tensor, "rows d_sae"], columns: Int[Tensor, "n"]
) -> Float[Tensor, "n rows"]:
    """Return columns as rows, in float32; reads memory in its order in both layouts."""
    if rows.stride(1) == 1:
        return rows.index_select(1, columns).float().T.contiguous()
    return rows.T.index_select(0, columns).float()
