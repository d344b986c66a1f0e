"""Sparse autoencoders: encode, decode, directions, whatever their activation.

One formula serves all, z = W_enc·h + b_enc: what a format does before encoding is folded into the
tensors when they are loaded. Encoding never holds more than a block of (tokens × d_sae). Its matmul
gives float32, because bfloat16 pre-activations tie at the border of the top k, which would make
the chosen features depend on the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saescope.engine.lm import LM
from saescope.engine.pages import Pages, release_pages
from saescope.engine.topk import largest_products
from saescope.errors import ResourceError, SourceError
from saescope.sources.budget import ENCODE_BLOCK
from saescope.sources.catalog import SaeSpec

# Rows are padded to the longest; if one token fires nearly everything, few fit in memory.
_MAX_ENTRIES = ENCODE_BLOCK // 2


class SparseActs(NamedTuple):
    """Each token's features, strongest first; an activation of 0 does not fire.

    k is the SAE's own k. For SAEs with thresholds it is the most that any of these tokens fires.
    """

    acts: Float[Tensor, "*b k"]
    ids: Int[Tensor, "*b k"]


class Encoding(NamedTuple):
    """The features of some tokens, and each token's strongest pre-activation that does not fire.

    `next_pre_act` is NaN if every feature fires.
    """

    sparse: SparseActs
    next_pre_act: Float[Tensor, "*b"]


@final
@dataclass(frozen=True)
class Sae:
    """An SAE of one layer. Its activation says which pre-activations z fire, with z as their value.

    `topk`: the k largest, if above 0. `jumprelu` and `batchtopk`: those above 0 and above the
    feature's `threshold`. `relu`: those above 0. `source` opens the SAE again. `mapped` are the
    encoder's pages that lie in a file: they are released after use, so that a job over many layers
    holds one encoder at a time.

    >>> import torch, saescope as ss
    >>> sae = ss.load_sae("saescope-tiny-sae", layer=2)
    >>> sparse = sae.encode(torch.ones(5, sae.spec.d_model))  # five residuals
    >>> sparse.acts.shape, sae.decode(sparse).shape
    (torch.Size([5, 32]), torch.Size([5, 192]))
    """

    spec: SaeSpec
    W_enc: Float[Tensor, "d_sae d_model"]
    b_enc: Float[Tensor, "d_sae"]
    W_dec: Float[Tensor, "d_model d_sae"] | None = None
    b_dec: Float[Tensor, "d_model"] | None = None
    source: str = ""
    mapped: tuple[Pages, ...] = ()
    threshold: Float[Tensor, "d_sae"] | None = None

    def pre_acts(self, resid: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_sae"]:
        """resid · W_encᵀ + b_enc in float32."""
        return torch.addmm(self.b_enc, resid.to(self.W_enc.device, torch.float32), self.W_enc.T)

    def encode(self, resid: Float[Tensor, "*b d_model"]) -> SparseActs:
        """The features that fire on every residual, strongest first.

        Raises SourceError for residuals of another width and for pre-activations that are not
        finite, and ResourceError if one residual fires so much that padded rows would not fit.
        """
        return self.encode_with_next(resid).sparse

    @torch.inference_mode()
    def encode_with_next(self, resid: Float[Tensor, "*b d_model"]) -> Encoding:
        """As `encode`, with the strongest pre-activation that does not fire."""
        shape = resid.shape[:-1]
        blocks = list(self.encode_blocks(resid.reshape(-1, resid.shape[-1])))
        widths = [block.sparse.acts.shape[1] for block in blocks]
        width = max(widths, default=self.spec.k or 0)
        n = sum(len(block.next_pre_act) for block in blocks)
        if n * width > _MAX_ENTRIES:
            raise ResourceError(
                f"a residual of {n:,} fires {width:,} features: encode fewer at once"
            )
        acts = torch.zeros(n, width, device=self.W_enc.device)
        ids = torch.zeros(n, width, device=self.W_enc.device, dtype=torch.int64)
        next_pre_act = torch.empty(n, device=self.W_enc.device)
        start = 0
        for block, block_width in zip(blocks, widths, strict=True):
            end = start + len(block.next_pre_act)
            acts[start:end, :block_width] = block.sparse.acts
            ids[start:end, :block_width] = block.sparse.ids
            next_pre_act[start:end] = block.next_pre_act
            start = end
        sparse = SparseActs(acts.reshape(*shape, width), ids.reshape(*shape, width))
        return Encoding(sparse, next_pre_act.reshape(shape))

    @torch.inference_mode()
    def encode_blocks(self, resid: Float[Tensor, "n d_model"]) -> Iterator[Encoding]:
        """Encode block by block, so that rows are only as long as their block's longest."""
        if resid.shape[-1] != self.spec.d_model:
            raise SourceError(
                f"residuals are {resid.shape[-1]} wide, "
                f"{_describe(self.spec)} reads {self.spec.d_model}"
            )
        if self.spec.activation == "topk":  # all rows have one length, so one block
            yield self._encode_top_k(resid.to(self.W_enc.device))
        else:
            for rows in _row_blocks(len(resid), 4 * self.spec.d_sae):
                yield self._encode_over_threshold(self.pre_acts(resid[rows]))
        release_pages(self.mapped)

    def _encode_top_k(self, resid: Float[Tensor, "rows d_model"]) -> Encoding:
        k = self.spec.k or 0
        d_sae = self.spec.d_sae
        top = largest_products(resid, self.W_enc, self.b_enc, min(k + 1, d_sae), self.mapped)
        self._refuse_infinite(top.values[:, :k])
        if k < d_sae:
            next_pre_act = top.values[:, k]
        else:
            next_pre_act = top.values.new_full((len(resid),), torch.nan)
        return Encoding(SparseActs(top.values[:, :k].relu(), top.ids[:, :k]), next_pre_act)

    def _encode_over_threshold(self, z: Float[Tensor, "rows d_sae"]) -> Encoding:
        """Sorts only what fires: a top-k as wide as the longest row would sort nearly everything.

        `z` is overwritten.
        """
        fires = z > self._thresholds()
        token, ids = fires.nonzero(as_tuple=True)
        acts = z[token, ids]
        order = acts.argsort(descending=True, stable=True)
        order = order[token[order].argsort(stable=True)]
        counts = torch.bincount(token, minlength=len(z))
        starts = counts.cumsum(0) - counts
        place = torch.arange(len(token), device=z.device) - starts[token]
        width = int(counts.max()) if len(z) else 0
        sparse = SparseActs(z.new_zeros(len(z), width), token.new_zeros(len(z), width))
        sparse.acts[token, place] = acts[order]
        sparse.ids[token, place] = ids[order]
        next_pre_act = z.masked_fill_(fires, -torch.inf).amax(-1)
        self._refuse_infinite(acts)
        # NaN fires nowhere, and is the largest of its row.
        self._refuse_infinite(next_pre_act.clamp(min=0))
        return Encoding(sparse, next_pre_act.masked_fill_(next_pre_act == -torch.inf, torch.nan))

    def _thresholds(self) -> Tensor | float:
        if self.threshold is None:
            return 0.0
        return self.threshold.clamp(min=0)

    def _refuse_infinite(self, values: Tensor) -> None:
        if not torch.isfinite(values).all():
            raise SourceError(
                f"{_describe(self.spec)} gives pre-activations that are not finite: "
                "its weights are damaged"
            )

    @torch.inference_mode()
    def fires(
        self, resid: Float[Tensor, "*b d_model"], ids: Int[Tensor, "e"]
    ) -> Bool[Tensor, "*b e"]:
        """Whether these features fire on each residual; only `topk` SAEs need a full encode."""
        if self.spec.activation == "topk":
            sparse = self.encode(resid)
            is_feature = sparse.ids[..., :, None] == ids
            return (is_feature & (sparse.acts[..., :, None] > 0)).any(dim=-2)
        wide = resid.to(self.W_enc.device, torch.float32)
        z = torch.nn.functional.linear(wide, self.W_enc[ids], self.b_enc[ids])
        if self.threshold is None:
            return z > 0.0
        return z > self.threshold[ids].clamp(min=0)

    @torch.inference_mode()
    def decode(self, sparse: SparseActs) -> Float[Tensor, "*b d_model"]:
        """acts · W_decᵀ + b_dec, gathering only the columns that fire; needs the decoder."""
        if self.W_dec is None or self.b_dec is None:
            raise SourceError(
                f"{_describe(self.spec)} was loaded without its decoder: "
                "load_sae(..., decoder=True)"
            )
        shape = sparse.acts.shape[:-1]
        width = sparse.acts.shape[-1]
        acts = sparse.acts.reshape(shape.numel(), width)
        ids = sparse.ids.reshape(shape.numel(), width)
        columns = self.W_dec.T
        out = torch.empty(len(acts), self.spec.d_model, device=columns.device)
        for rows in _row_blocks(len(acts), 4 * width * self.spec.d_model):
            longest = int((acts[rows] > 0).sum(1).max())  # the rest of the rows is padding
            weights = acts[rows, :longest]
            out[rows] = torch.einsum("nk,nkd->nd", weights, columns[ids[rows, :longest]])
        return (out + self.b_dec).reshape(*shape, self.spec.d_model)


def _row_blocks(n: int, row_bytes: int) -> Iterator[slice]:
    """Slices of n rows, each of at most ENCODE_BLOCK bytes."""
    size = max(1, ENCODE_BLOCK // max(1, row_bytes))
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _describe(spec: SaeSpec) -> str:
    return f"the SAE of layer {spec.layer} ({spec.release})"


def check_fit(lm: LM, saes: Sequence[Sae]) -> None:
    """Raise SourceError unless every SAE reads this model's residuals at a layer that is loaded."""
    if len({sae.spec.layer for sae in saes}) != len(saes):
        raise SourceError("two SAEs are of the same layer: give each layer once")
    for sae in saes:
        spec = sae.spec
        if spec.d_model != lm.spec.d_model:
            raise SourceError(
                f"SAE {spec.release} layer {spec.layer} reads residuals {spec.d_model} wide, "
                f"{lm.spec.repo} has {lm.spec.d_model}: they do not belong together"
            )
        if spec.layer >= len(lm.blocks):
            raise SourceError(
                f"layer {spec.layer} was not loaded: "
                f"{lm.spec.repo} is cut after {len(lm.blocks) - 1}"
            )
