"""A batch's residuals of one layer as what a run stores: features, and residuals per prompt."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saescope.engine.magnitudes import finite_magnitudes
from saescope.engine.sae import Sae
from saescope.store.arrays import Bools, Indices
from saescope.store.run_positions import scored_in_prompts
from saescope.store.tables import LayerFeatures, PromptResids, id_type


def encode_batch(
    sae: Sae,
    resid: Float[Tensor, "n d_model"],
    indices: Int[Tensor, "tokens"] | None,
    lengths: Sequence[int],
    keep_errors: bool,
) -> tuple[LayerFeatures, PromptResids]:
    """Encode a batch's tokens; token i is row `indices[i]` of `resid` (row i if None)."""
    resid_float32 = resid.float()
    norms, peaks = finite_magnitudes(resid_float32, sae.spec.layer)
    residual_indices = np.arange(len(resid)) if indices is None else indices.numpy()
    chunks = list(_feature_chunks(sae, resid, norms, peaks, keep_errors))
    features = LayerFeatures.joined(chunks).take(residual_indices)
    is_scored = scored_in_prompts(sae.spec.layer, features.magnitudes, lengths)
    return features, _resids_by_prompt(resid_float32, residual_indices, is_scored, lengths)


def _feature_chunks(
    sae: Sae,
    resid: Float[Tensor, "n d_model"],
    norms: Float[Tensor, "n"],
    peaks: Float[Tensor, "n"],
    keep_errors: bool,
) -> Iterator[LayerFeatures]:
    """Encode chunk by chunk, so a token with many active features pads only its own chunk."""
    start = 0
    for sparse, next_pre_act in sae.encode_chunks(resid):
        end = start + len(next_pre_act)
        error = None
        if keep_errors:
            reconstruction = sae.decode(sparse, resid[start:end])
            error = (resid[start:end].float() - reconstruction).norm(dim=-1).cpu().numpy()
        yield LayerFeatures.of_rows(
            norms=norms[start:end].cpu().numpy(),
            acts=sparse.acts.cpu().numpy(),
            ids=sparse.ids.cpu().numpy().astype(id_type(sae.spec.d_sae)),
            next_pre_act=next_pre_act.cpu().numpy(),
            error=error,
            peaks=peaks[start:end].cpu().numpy(),
        )
        start = end


def _resids_by_prompt(
    resid: Float[Tensor, "n d_model"], indices: Indices, is_scored: Bools, lengths: Sequence[int]
) -> PromptResids:
    """Return each prompt's last residual and its mean over scored positions.

    `indices` holds each token's row in `resid`, `is_scored` whether the token counts.
    """
    ends = np.cumsum(lengths)
    means = []
    n_scored = []
    for start, end in zip(ends - lengths, ends, strict=True):
        scored = indices[start:end][is_scored[start:end]]
        summed = resid[torch.from_numpy(scored).to(resid.device)].sum(0)
        means.append(summed / max(1, len(scored)))
        n_scored.append(len(scored))
    last = torch.from_numpy(indices[ends - 1]).to(resid.device)
    return PromptResids(
        positions=np.array(n_scored, np.int32),
        mean=torch.stack(means).cpu().numpy(),
        last=resid[last].cpu().numpy(),
    )
