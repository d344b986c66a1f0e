"""Sparse autoencoders with the k strongest features a token: encode, decode, directions.

Encoding never holds more than a block of (tokens × d_sae); its product is computed and returned in float32, because
bfloat16 pre-activations tie across the border of the top k and make the set depend on the batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saescope.engine.pages import Pages, give_back
from saescope.engine.topk import largest_products
from saescope.errors import SourceError
from saescope.sources.budget import ENCODE_BLOCK
from saescope.sources.catalog import SaeSpec


class SparseActs(NamedTuple):
    """The k strongest features of each token, strongest first; an activation of 0 does not fire."""

    acts: Float[Tensor, "*b k"]
    ids: Int[Tensor, "*b k"]


@final
@dataclass(frozen=True)
class TopKSae:
    """An SAE whose features fire where they are among the k largest pre-activations and above 0.

    `source` is what opens it again. `mapped` are the encoder's pages that lie in a file: they are given back after use,
    so that a job over many layers holds one encoder at a time.
    """

    spec: SaeSpec
    W_enc: Float[Tensor, "d_sae d_model"]
    b_enc: Float[Tensor, "d_sae"]
    W_dec: Float[Tensor, "d_model d_sae"] | None = None
    b_dec: Float[Tensor, "d_model"] | None = None
    source: str = ""
    mapped: tuple[Pages, ...] = ()

    def pre_acts(self, resid: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_sae"]:
        """resid · W_encᵀ + b_enc in float32; nothing is subtracted or normalised first (Qwen-Scope's definition)."""
        return torch.addmm(self.b_enc, resid.to(self.W_enc.device, torch.float32), self.W_enc.T)

    def encode(self, resid: Float[Tensor, "*b d_model"]) -> SparseActs:
        """The k strongest features of every residual, strongest first.

        Raises SourceError for another width than the SAE's, and for pre-activations that are not finite.
        """
        return self.encode_with_border(resid)[0]

    @torch.inference_mode()
    def encode_with_border(self, resid: Float[Tensor, "*b d_model"]) -> tuple[SparseActs, Float[Tensor, "*b"]]:
        """As `encode`, and the strongest pre-activation that is not among the k: NaN where every feature is."""
        if resid.shape[-1] != self.spec.d_model:
            raise SourceError(f"residuals are {resid.shape[-1]} wide, {_shown(self.spec)} reads {self.spec.d_model}")
        flat = resid.reshape(-1, self.spec.d_model).to(self.W_enc.device)
        k, shape = self.spec.k, resid.shape[:-1]
        top = largest_products(flat, self.W_enc, self.b_enc, min(k + 1, self.spec.d_sae), self.mapped)
        give_back(self.mapped)
        if not torch.isfinite(top.values[:, :k]).all():
            raise SourceError(f"{_shown(self.spec)} gives pre-activations that are not finite: its weights are damaged")
        border = top.values[:, k] if k < self.spec.d_sae else top.values.new_full((len(flat),), torch.nan)
        strongest = top.values[:, :k].relu().reshape(*shape, k)
        return SparseActs(strongest, top.ids[:, :k].reshape(*shape, k)), border.reshape(shape)

    @torch.inference_mode()
    def decode(self, sparse: SparseActs) -> Float[Tensor, "*b d_model"]:
        """acts · W_decᵀ + b_dec, gathering only the k columns that fire; needs an SAE loaded with its decoder."""
        if self.W_dec is None or self.b_dec is None:
            raise SourceError(f"{_shown(self.spec)} was loaded without its decoder: load_sae(..., decoder=True)")
        acts, ids = sparse.acts.reshape(-1, self.spec.k), sparse.ids.reshape(-1, self.spec.k)
        columns = self.W_dec.T
        out = torch.empty(len(acts), self.spec.d_model, device=columns.device)
        for rows in _blocks(len(acts), 4 * self.spec.k * self.spec.d_model):
            out[rows] = torch.einsum("nk,nkd->nd", acts[rows], columns[ids[rows]])
        return (out + self.b_dec).reshape(*sparse.acts.shape[:-1], self.spec.d_model)


def _blocks(n: int, row_bytes: int) -> Iterator[slice]:
    size = max(1, ENCODE_BLOCK // row_bytes)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _shown(spec: SaeSpec) -> str:
    return f"the SAE of layer {spec.layer} ({spec.release})"
