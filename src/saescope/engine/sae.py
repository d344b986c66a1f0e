"""Sparse autoencoders: encode and decode, for all supported activations.

All SAEs use z = W_enc·h + b_enc, where h is the residual, or the residual times a factor per token
if the SAE normalises its input (`input_norm.py`). Other preprocessing is folded into the weights at
load time. Encoding holds one chunk of (tokens × d_sae) at a time. Pre-activations are float32:
bfloat16 produces ties at the k-th value, and the selected features would then depend on the batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saescope.engine.input_norm import denormalise, token_scale
from saescope.engine.lm import LM
from saescope.engine.pages import Pages, release_pages
from saescope.engine.topk import largest_products
from saescope.errors import ResourceError, SourceError
from saescope.sources.budget import ENCODE_BLOCK
from saescope.sources.catalog import SaeSpec
from saescope.sources.formats.tensors import InputNorm
from saescope.sources.stored_files import StoredFile

# Maximum entries (tokens × width) of `encode`'s padded result: one token with many active features
# widens every row. An entry takes 12 bytes (float32 activation, int64 id), so this is 384 MiB.
_MAX_ENTRIES = 32 * 2**20


class SparseActs(NamedTuple):
    """Each token's features, strongest first; entries with activation 0 are padding.

    For TopK SAEs, k is the SAE's k. For SAEs with thresholds, it is the maximum number of active
    features among these tokens.
    """

    acts: Float[Tensor, "*b k"]
    ids: Int[Tensor, "*b k"]

    def __repr__(self) -> str:
        return f"SparseActs(acts and ids {tuple(self.acts.shape)}, {self.acts.dtype})"


class Encoding(NamedTuple):
    """The active features of some tokens, and the pre-activation next in line on each token.

    For TopK SAEs, `next_pre_act` is the (k+1)-th largest pre-activation, even if fewer than k
    features are active because some of the k largest are 0 or less; NaN if k = d_sae. For all
    others, it is the largest pre-activation that is not active; NaN if every feature is active.
    """

    sparse: SparseActs
    next_pre_act: Float[Tensor, "*b"]


class Decoder(NamedTuple):
    """Decoder weights. Those read from a file are as stored: any dtype, perhaps not finite."""

    W_dec: Float[Tensor, "d_model d_sae"]
    b_dec: Float[Tensor, "d_model"]


@final
@dataclass(frozen=True, repr=False)
class Sae:
    """An SAE of one layer.

    `spec.activation` decides which features are active; the value of an active feature is its
    pre-activation z. `topk`: the k largest z, if above 0. `jumprelu` and `batchtopk`: every z above
    0 and above the feature's `threshold`. `relu`: every z above 0. `input_norm`: how the input is
    normalised per token.

    Weights have the nn.Linear layout (out, in). `source` opens the SAE again. `mapped`:
    memory-mapped pages of the encoder. They are released after use, so that a job over many layers
    holds one encoder at a time. `read_decoder` reads the decoder if W_dec is not loaded. `files`:
    the files it was read from, in the folder or repository `files_source`.

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
    read_decoder: Callable[[], Decoder] | None = None
    input_norm: InputNorm = "none"
    files: tuple[StoredFile, ...] = ()
    files_source: str = ""

    def __repr__(self) -> str:
        spec = self.spec
        decoder = "no decoder loaded" if self.W_dec is None else "with decoder"
        size = f"{spec.d_model} dimensions to {spec.d_sae:,} features, k {spec.k}"
        return f"Sae(layer {spec.layer}, {spec.activation}: {size}, {decoder})"

    def decoder(self) -> Decoder | None:
        """Return the loaded decoder, or the one in the SAE's file; None if there is neither."""
        if self.W_dec is not None and self.b_dec is not None:
            return Decoder(self.W_dec, self.b_dec)
        return None if self.read_decoder is None else self.read_decoder()

    def pre_acts(self, resid: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_sae"]:
        """Return h · W_encᵀ + b_enc in float32; h is `resid`, normalised as `input_norm` says."""
        return torch.addmm(self.b_enc, self._encoder_input(resid).float(), self.W_enc.T)

    def _encoder_input(self, resid: Float[Tensor, "*b d_model"]) -> Float[Tensor, "*b d_model"]:
        resid = resid.to(self.W_enc.device)
        scale = token_scale(self.input_norm, resid)
        return resid if scale is None else resid.float() * scale.factor

    def encode(self, resid: Float[Tensor, "*b d_model"]) -> SparseActs:
        """Return the features that fire on each residual, strongest first.

        Raises SourceError for residuals of the wrong width and for pre-activations that are not
        finite. Raises ResourceError if residuals × the largest number of active features exceeds
        what the padded result may hold.
        """
        return self.encode_with_next(resid).sparse

    @torch.inference_mode()
    def encode_with_next(self, resid: Float[Tensor, "*b d_model"]) -> Encoding:
        """Like `encode`, with `next_pre_act` of each residual."""
        shape = resid.shape[:-1]
        chunks = list(self.encode_chunks(resid.reshape(-1, resid.shape[-1])))
        widths = [chunk.sparse.acts.shape[1] for chunk in chunks]
        width = max(widths, default=self.spec.k or 0)
        n = sum(len(chunk.next_pre_act) for chunk in chunks)
        if n * width > _MAX_ENTRIES:
            raise ResourceError(
                f"one of {n:,} residuals activates {width:,} features; the padded result would "
                "not fit: encode fewer residuals per call"
            )
        acts = torch.zeros(n, width, device=self.W_enc.device)
        ids = torch.zeros(n, width, device=self.W_enc.device, dtype=torch.int64)
        next_pre_act = torch.empty(n, device=self.W_enc.device)
        start = 0
        for chunk, chunk_width in zip(chunks, widths, strict=True):
            end = start + len(chunk.next_pre_act)
            acts[start:end, :chunk_width] = chunk.sparse.acts
            ids[start:end, :chunk_width] = chunk.sparse.ids
            next_pre_act[start:end] = chunk.next_pre_act
            start = end
        sparse = SparseActs(acts.reshape(*shape, width), ids.reshape(*shape, width))
        return Encoding(sparse, next_pre_act.reshape(shape))

    @torch.inference_mode()
    def encode_chunks(self, resid: Float[Tensor, "n d_model"]) -> Iterator[Encoding]:
        """Encode chunk by chunk of rows; each chunk is padded only to the width that it needs."""
        if resid.shape[-1] != self.spec.d_model:
            raise SourceError(
                f"residuals are {resid.shape[-1]} wide, "
                f"{_describe(self.spec)} reads {self.spec.d_model}"
            )
        if self.spec.activation == "topk":  # one chunk: `largest_products` itself works in blocks
            yield self._encode_top_k(self._encoder_input(resid))
        else:
            for rows in _row_chunks(len(resid), 4 * self.spec.d_sae):
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
        """Return the features over their thresholds; `z` is overwritten.

        Only active entries are sorted: torch.topk would need the longest row's width for every row.
        """
        is_active = z > self._thresholds()
        token, ids = is_active.nonzero(as_tuple=True)
        acts = z[token, ids]
        # `nonzero` is row-major, so `token` ascends. `order` sorts the entries by token, and within
        # each token by activation: `token[order]` equals `token`.
        strongest_first = acts.argsort(descending=True, stable=True)
        order = strongest_first[token[strongest_first].argsort(stable=True)]
        counts = torch.bincount(token, minlength=len(z))
        starts = counts.cumsum(0) - counts
        rank_in_row = torch.arange(len(token), device=z.device) - starts[token]
        width = int(counts.max()) if len(z) else 0
        sparse = SparseActs(z.new_zeros(len(z), width), token.new_zeros(len(z), width))
        sparse.acts[token, rank_in_row] = acts[order]
        sparse.ids[token, rank_in_row] = ids[order]
        next_pre_act = z.masked_fill_(is_active, -torch.inf).amax(-1)
        self._refuse_infinite(acts)
        # NaN never exceeds a threshold but propagates through amax, so it is caught here.
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
        """Return whether these features fire on each residual; only TopK needs a full encode."""
        if self.spec.activation == "topk":
            sparse = self.encode(resid)
            is_feature = sparse.ids[..., :, None] == ids
            return (is_feature & (sparse.acts[..., :, None] > 0)).any(dim=-2)
        encoder_input = self._encoder_input(resid).float()
        z = torch.nn.functional.linear(encoder_input, self.W_enc[ids], self.b_enc[ids])
        if self.threshold is None:
            return z > 0.0
        return z > self.threshold[ids].clamp(min=0)

    @torch.inference_mode()
    def decode(
        self, sparse: SparseActs, resid: Float[Tensor, "*b d_model"] | None = None
    ) -> Float[Tensor, "*b d_model"]:
        """Return acts · W_decᵀ + b_dec, using only active features; needs the decoder.

        An SAE that normalises its input per token needs the residuals too, for their scales.
        """
        if self.W_dec is None or self.b_dec is None:
            raise SourceError(
                f"{_describe(self.spec)} was loaded without its decoder: "
                "load_sae(..., decoder=True)"
            )
        if self.input_norm != "none" and resid is None:
            raise SourceError(
                f"{_describe(self.spec)} normalises its input per token ({self.input_norm}): "
                "decode needs the residuals too, decode(sparse, resid)"
            )
        shape = sparse.acts.shape[:-1]
        width = sparse.acts.shape[-1]
        acts = sparse.acts.reshape(shape.numel(), width)
        ids = sparse.ids.reshape(shape.numel(), width)
        columns = self.W_dec.T
        out = torch.empty(len(acts), self.spec.d_model, device=columns.device)
        for rows in _row_chunks(len(acts), 4 * width * self.spec.d_model):
            longest = int((acts[rows] > 0).sum(1).max())  # entries beyond it are padding
            weights = acts[rows, :longest]
            out[rows] = torch.einsum("nk,nkd->nd", weights, columns[ids[rows, :longest]])
        decoded = (out + self.b_dec).reshape(*shape, self.spec.d_model)
        if resid is None:
            return decoded
        return denormalise(self.input_norm, decoded, resid.to(decoded.device))


def _row_chunks(n: int, row_bytes: int) -> Iterator[slice]:
    """Return slices of n rows, each of at most ENCODE_BLOCK bytes, or of one row."""
    size = max(1, ENCODE_BLOCK // max(1, row_bytes))
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _describe(spec: SaeSpec) -> str:
    return f"the SAE of layer {spec.layer} ({spec.release})"


def check_fit(lm: LM, saes: Sequence[Sae]) -> None:
    """Raise SourceError if two SAEs share a layer, or if one does not fit the loaded model."""
    if len({sae.spec.layer for sae in saes}) != len(saes):
        raise SourceError("more than one SAE for a layer: pass one SAE per layer")
    for sae in saes:
        spec = sae.spec
        if spec.d_model != lm.spec.d_model:
            raise SourceError(
                f"SAE {spec.release} layer {spec.layer} reads residuals {spec.d_model} wide, "
                f"{lm.spec.repo} has {lm.spec.d_model}: "
                "this SAE was not trained on this model's width"
            )
        if spec.layer >= len(lm.blocks):
            raise SourceError(
                f"there is an SAE for layer {spec.layer}, but {lm.spec.repo} was loaded up to "
                f"layer {len(lm.blocks) - 1} only: load it with layers=[{spec.layer}]"
            )
