"""Sparse autoencoders: encode, decode, directions, whatever their activation.

One formula serves all, z = W_enc·h + b_enc: what else a maker does before encoding is folded into the tensors when they
are loaded. Encoding never holds more than a block of (tokens × d_sae); its product is computed and returned in float32,
because bfloat16 pre-activations tie across the border of the top k and make the set depend on the batch.
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

# Rows are as long as the longest of them; where one token fires nearly everything, so many cannot stand together.
_MOST_ENTRIES = ENCODE_BLOCK // 2


class SparseActs(NamedTuple):
    """Each token's features, strongest first; an activation of 0 does not fire.

    k is the SAE's own, or for SAEs with thresholds the most that any of these tokens fires.
    """

    acts: Float[Tensor, "*b k"]
    ids: Int[Tensor, "*b k"]


@final
@dataclass(frozen=True)
class Sae:
    """An SAE of one layer; its spec's activation says which pre-activations z it lets through, as they are.

    `topk`: the k largest that are above 0. `jumprelu` and `batchtopk`: those above 0 and above their `threshold`.
    `relu`: those above 0. `source` is what opens it again. `mapped` are the encoder's pages that lie in a file: they
    are given back after use, so that a job over many layers holds one encoder at a time.
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
        """What fires on every residual, strongest first.

        Raises SourceError for another width than the SAE's, and for pre-activations that are not finite;
        ResourceError where one residual fires so much that rows of that length would not fit.
        """
        return self.encode_with_next(resid)[0]

    @torch.inference_mode()
    def encode_with_next(
        self, resid: Float[Tensor, "*b d_model"]
    ) -> tuple[SparseActs, Float[Tensor, "*b"]]:
        """As `encode`, and the strongest pre-activation that is not let through: NaN where every one is."""
        shape = resid.shape[:-1]
        blocks = list(self.encode_blocks(resid.reshape(-1, resid.shape[-1])))
        width = max((sparse.acts.shape[1] for sparse, _ in blocks), default=self.spec.k or 0)
        n = sum(len(next_pre_act) for _, next_pre_act in blocks)
        if n * width > _MOST_ENTRIES:
            raise ResourceError(
                f"a residual of {n:,} fires {width:,} features: encode fewer at once"
            )
        acts = torch.zeros(n, width, device=self.W_enc.device)
        ids = torch.zeros(n, width, device=self.W_enc.device, dtype=torch.int64)
        next_pre_act = torch.empty(n, device=self.W_enc.device)
        start = 0
        for sparse, of_block in blocks:
            rows = slice(start, start := start + len(of_block))
            acts[rows, : sparse.acts.shape[1]], ids[rows, : sparse.ids.shape[1]] = sparse
            next_pre_act[rows] = of_block
        return SparseActs(
            acts.reshape(*shape, width), ids.reshape(*shape, width)
        ), next_pre_act.reshape(shape)

    @torch.inference_mode()
    def encode_blocks(
        self, resid: Float[Tensor, "n d_model"]
    ) -> Iterator[tuple[SparseActs, Float[Tensor, "rows"]]]:
        """Block by block of the residuals what fires, in rows as long as the block's longest, and the next_pre_act."""
        if resid.shape[-1] != self.spec.d_model:
            raise SourceError(
                f"residuals are {resid.shape[-1]} wide, {_shown(self.spec)} reads {self.spec.d_model}"
            )
        if self.spec.activation == "topk":  # of one length, so one block
            yield self._k_largest(resid.to(self.W_enc.device))
        else:
            for rows in _blocks(len(resid), 4 * self.spec.d_sae):
                yield self._over_threshold(self.pre_acts(resid[rows]))
        release_pages(self.mapped)

    def _k_largest(
        self, resid: Float[Tensor, "rows d_model"]
    ) -> tuple[SparseActs, Float[Tensor, "rows"]]:
        k = self.spec.k or 0
        top = largest_products(
            resid, self.W_enc, self.b_enc, min(k + 1, self.spec.d_sae), self.mapped
        )
        self._refuse_infinite(top.values[:, :k])
        next_pre_act = (
            top.values[:, k]
            if k < self.spec.d_sae
            else top.values.new_full((len(resid),), torch.nan)
        )
        return SparseActs(top.values[:, :k].relu(), top.ids[:, :k]), next_pre_act

    def _over_threshold(
        self, z: Float[Tensor, "rows d_sae"]
    ) -> tuple[SparseActs, Float[Tensor, "rows"]]:
        """By sorting only what fires: a top-k as wide as the longest row would sort nearly everything."""
        fires = z > self._floor
        token, ids = fires.nonzero(as_tuple=True)
        acts = z[token, ids]
        order = acts.argsort(descending=True, stable=True)
        order = order[token[order].argsort(stable=True)]
        counts = torch.bincount(token, minlength=len(z))
        place = torch.arange(len(token), device=z.device) - (counts.cumsum(0) - counts)[token]
        width = int(counts.max()) if len(z) else 0
        sparse = SparseActs(z.new_zeros(len(z), width), token.new_zeros(len(z), width))
        sparse.acts[token, place], sparse.ids[token, place] = acts[order], ids[order]
        next_pre_act = z.masked_fill_(fires, -torch.inf).amax(-1)
        self._refuse_infinite(acts)
        self._refuse_infinite(
            next_pre_act.clamp(min=0)
        )  # what is not a number fires nowhere, and is the largest of its row
        return sparse, next_pre_act.masked_fill_(next_pre_act == -torch.inf, torch.nan)

    @property
    def _floor(self) -> Tensor | float:
        return 0.0 if self.threshold is None else self.threshold.clamp(min=0)

    def _refuse_infinite(self, values: Tensor) -> None:
        if not torch.isfinite(values).all():
            raise SourceError(
                f"{_shown(self.spec)} gives pre-activations that are not finite: its weights are damaged"
            )

    @torch.inference_mode()
    def fires(
        self, resid: Float[Tensor, "*b d_model"], ids: Int[Tensor, "e"]
    ) -> Bool[Tensor, "*b e"]:
        """Whether some features fire on each residual; costs a full encode only where the k largest decide."""
        if self.spec.activation == "topk":
            sparse = self.encode(resid)
            return ((sparse.ids[..., :, None] == ids) & (sparse.acts[..., :, None] > 0)).any(dim=-2)
        flat = resid.to(self.W_enc.device, torch.float32)
        z = torch.nn.functional.linear(flat, self.W_enc[ids], self.b_enc[ids])
        return z > (0.0 if self.threshold is None else self.threshold[ids].clamp(min=0))

    @torch.inference_mode()
    def decode(self, sparse: SparseActs) -> Float[Tensor, "*b d_model"]:
        """acts · W_decᵀ + b_dec, gathering only the columns that fire; needs an SAE loaded with its decoder."""
        if self.W_dec is None or self.b_dec is None:
            raise SourceError(
                f"{_shown(self.spec)} was loaded without its decoder: load_sae(..., decoder=True)"
            )
        width = sparse.acts.shape[-1]
        flat = (sparse.acts.shape[:-1].numel(), width)
        acts, ids = sparse.acts.reshape(flat), sparse.ids.reshape(flat)
        columns = self.W_dec.T
        out = torch.empty(len(acts), self.spec.d_model, device=columns.device)
        for rows in _blocks(len(acts), 4 * width * self.spec.d_model):
            longest = int((acts[rows] > 0).sum(1).max())  # what is left of the rows is padding
            out[rows] = torch.einsum(
                "nk,nkd->nd", acts[rows, :longest], columns[ids[rows, :longest]]
            )
        return (out + self.b_dec).reshape(*sparse.acts.shape[:-1], self.spec.d_model)


def _blocks(n: int, row_bytes: int) -> Iterator[slice]:
    size = max(1, ENCODE_BLOCK // max(1, row_bytes))
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _shown(spec: SaeSpec) -> str:
    return f"the SAE of layer {spec.layer} ({spec.release})"


def check_fit(lm: LM, saes: Sequence[Sae]) -> None:
    """Raises SourceError unless every SAE reads this model's residuals at a layer it has."""
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
                f"layer {spec.layer} was not loaded: {lm.spec.repo} is cut after {len(lm.blocks) - 1}"
            )
