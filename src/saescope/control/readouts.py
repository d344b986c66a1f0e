"""What edits and conditions read of a residual: pre-activations of features, components along
directions, and activations under a gate."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saescope.engine.input_norm import token_scale
from saescope.engine.sae import Sae
from saescope.errors import EditError
from saescope.sources.catalog import Feature
from saescope.sources.formats.tensors import InputNorm


@dataclass(frozen=True, eq=False)
class Readout:
    """Linear read-outs z = w·h + b of the residual, one row per edit.

    Rows that `normalised` marks read a normalised residual (None: no row does), as `input_norm`
    says.
    """

    w: Float[Tensor, "n d_model"]
    b: Float[Tensor, "n"]
    normalised: Bool[Tensor, "n"] | None = None
    input_norm: InputNorm = "none"

    def __call__(self, h: Float[Tensor, "*b d_model"]) -> Float[Tensor, "*b n"]:
        """Return the read-outs of each residual."""
        scale = token_scale(self.input_norm, h)
        if scale is None or self.normalised is None:
            return torch.nn.functional.linear(h, self.w, self.b)
        factor = torch.where(self.normalised, scale.factor.to(h), 1)
        return torch.nn.functional.linear(h, self.w) * factor + self.b

    def units(
        self, h: Float[Tensor, "*b d_model"], rows: Bool[Tensor, "n"]
    ) -> Float[Tensor, "*b n"] | None:
        """Return what one unit of these rows' activations is in the residual; None if 1."""
        scale = token_scale(self.input_norm, h)
        if scale is None or self.normalised is None:
            return None
        return torch.where(self.normalised & rows, scale.unit.to(h), 1)


@dataclass(frozen=True, eq=False)
class ActivationReader:
    """Reads pre-activations and gated activations of features, or components along directions.

    `ids` are the features (-1: a direction). `relu_mask` says which features need no SAE encode
    (None: all need it). `sae` is None if no feature needs it.
    """

    readout: Readout
    ids: Int[Tensor, "n"]
    relu_mask: Bool[Tensor, "n"] | None
    sae: Sae | None

    def acts(
        self, h: Float[Tensor, "*b d_model"], pre_acts: Float[Tensor, "*b n"]
    ) -> Float[Tensor, "*b n"]:
        """Return the activations of each residual under each feature's gate."""
        acts = pre_acts.relu()
        if self.sae is None:
            return acts
        is_active = self.sae.fires(h, self.ids.to(self.sae.W_enc.device)).to(self.ids.device)
        if self.relu_mask is not None:
            is_active = is_active | self.relu_mask
        return torch.where(is_active, acts, 0)


class WatchedFeature(NamedTuple):
    """A feature that a condition reads; `topk` is True if the edit's gate is `topk`."""

    feature: Feature
    topk: bool


def condition_reader(
    watched: Sequence[WatchedFeature], sae: Sae, dtype: torch.dtype = torch.float32
) -> ActivationReader:
    """Return the reader of the features that conditions read.

    Raises EditError for a feature that the SAE does not have.
    """
    rows = [feature_row(feature, sae, needs_encode=topk) for feature, topk in watched]
    return stack_rows(rows, sae, dtype, sae.W_enc.device)


class ReaderRow(NamedTuple):
    """One row of an ActivationReader; `needs_encode`: its activation needs an SAE encode."""

    w: Float[Tensor, "d_model"]
    b: Float[Tensor, ""]
    id: int
    needs_encode: bool


def feature_row(feature: Feature, sae: Sae, *, needs_encode: bool) -> ReaderRow:
    """Return the row that reads a feature; raises EditError if the SAE does not have it."""
    layer, d_sae = sae.spec.layer, sae.spec.d_sae
    if feature.layer != layer:
        raise EditError(f"edit of {feature}: this is the SAE of layer {layer}")
    if feature.id >= d_sae:
        raise EditError(
            f"edit of {feature}: the SAE of layer {layer} has {d_sae} features (ids 0-{d_sae - 1})"
        )
    return ReaderRow(sae.W_enc[feature.id], sae.b_enc[feature.id], feature.id, needs_encode)


def stack_rows(
    rows: Sequence[ReaderRow], sae: Sae | None, dtype: torch.dtype, device: torch.device
) -> ActivationReader:
    """Return the reader of these rows; `sae` gates those whose activation needs its encode."""
    w = torch.stack([row.w for row in rows]).to(device, dtype)
    b = torch.stack([row.b for row in rows]).to(device, dtype)
    ids = torch.tensor([row.id for row in rows], device=device)
    needs_encode = torch.tensor([row.needs_encode for row in rows], device=device)
    encoder = None
    if sae is not None and needs_encode.any():
        encoder = replace(sae, mapped=())  # keep pages resident: every step needs them
    relu_mask = None if needs_encode.all() else ~needs_encode
    if sae is None or sae.input_norm == "none":
        readout = Readout(w, b)
    else:
        readout = Readout(w, b, normalised=ids >= 0, input_norm=sae.input_norm)
    return ActivationReader(readout, ids, relu_mask, encoder)
