"""What edits do to a residual: pure functions on tensors. Every edit of a layer is computed from
the same residual.

With z = w·h + b (the feature's encoder row and bias), a its activation, d its decoder column and
c = w·d:

    add            h + s·d
    scale          h + s·a·d            s = -1 takes the feature's own contribution out
    clamp          h + (t - a)·d        keeps what the SAE does not explain; t = 0 is ablation
    readout_clamp  h + ((t - z)/c)·d    the feature's pre-activation becomes t
    project        h - s·(d̂·h)·d̂        removes the component along the direction, whatever the
                                        feature does

A plain direction d is edited in the same words with w = d̂ and b = 0: add h + s·d, project as
above, and the read-out clamp h + (t - d̂·h)·d̂, after which the component along it is t.

The activation is relu(z), or with the gate `topk` z only where the SAE's own activation lets it
through: where it is among the k largest, or above its threshold. An edit with a condition acts
where the other feature's activation, under the edit's gate, is above the condition's number.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saescope.control.edits import Edit
from saescope.engine.sae import Sae
from saescope.errors import EditError
from saescope.sources.catalog import Feature

_LEAST_GAIN = 1e-6  # of a read-out clamp: below it the direction does not move its own read-out


@dataclass(frozen=True, eq=False)
class Readout:
    """Linear read-outs z = w·h + b of the residual, a row per edit."""

    w: Float[Tensor, "n d_model"]
    b: Float[Tensor, "n"]

    def __call__(self, h: Float[Tensor, "*b d_model"]) -> Float[Tensor, "*b n"]:
        """The read-outs of each residual."""
        return torch.nn.functional.linear(h, self.w, self.b)


@dataclass(frozen=True, eq=False)
class ActivationReader:
    """Reads pre-activations and gated activations of features, or components along directions.

    `ids` are the features (-1: a direction). Activations under the gate `relu` are marked in
    `ungated` (None: there are none); all others need a full encode by `sae`.
    """

    readout: Readout
    ids: Int[Tensor, "n"]
    ungated: Bool[Tensor, "n"] | None
    sae: Sae | None

    def acts(
        self, h: Float[Tensor, "*b d_model"], pre_acts: Float[Tensor, "*b n"]
    ) -> Float[Tensor, "*b n"]:
        """Activations of each residual under each feature's gate."""
        acts = pre_acts.relu()
        if self.sae is None:
            return acts
        counts = self.sae.fires(h, self.ids.to(self.sae.W_enc.device)).to(self.ids.device)
        if self.ungated is not None:
            counts = counts | self.ungated
        return torch.where(counts, acts, 0)


@dataclass(frozen=True, eq=False)
class LayerEdits:
    """Edits of one layer with their tensors, a row per edit: read-outs, decoder columns, gains.

    Column d is added `constant + by_act·a + by_read·r` times, where a is the activation and r the
    read-out: z, or d̂·h for projections. `own_readout` computes r if it is not z for all edits.
    """

    edits: tuple[Edit, ...]
    reader: ActivationReader
    d: Float[Tensor, "n d_model"]
    gain: Float[Tensor, "n"]
    constant: Float[Tensor, "n"]
    by_act: Float[Tensor, "n"] | None
    by_read: Float[Tensor, "n"] | None
    own_readout: Readout | None

    @property
    def norms(self) -> Float[Tensor, "n"]:
        """Lengths of the decoder columns and directions as they are stored."""
        norms: Tensor = self.d.norm(dim=1)
        return norms

    def along_random_directions(self, seed: int) -> "LayerEdits":
        """The same edits along random directions of the same lengths, a control."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self.d.shape, generator=generator).to(self.d)
        d = drawn / drawn.norm(dim=1, keepdim=True) * self.norms[:, None]
        return _assemble(self.edits, self.reader, d, self.gain)


class Coefficients(NamedTuple):
    """How many times each edit's column is added, and the features' activations."""

    amounts: Float[Tensor, "*b n"]
    acts: Float[Tensor, "*b n"]


def delta(bound: LayerEdits, h: Float[Tensor, "*b d_model"]) -> Float[Tensor, "*b d_model"]:
    """What all edits together add to each residual."""
    return coefficients(bound, h).amounts @ bound.d


def coefficients(bound: LayerEdits, h: Float[Tensor, "*b d_model"]) -> Coefficients:
    """How many times each edit's column is added to each residual."""
    pre_acts = bound.reader.readout(h)
    acts = bound.reader.acts(h, pre_acts)
    amounts = bound.constant
    if bound.by_act is not None:
        amounts = torch.addcmul(amounts, bound.by_act, acts)
    if bound.by_read is not None:
        read = pre_acts if bound.own_readout is None else bound.own_readout(h)
        amounts = torch.addcmul(amounts, bound.by_read, read)
    return Coefficients(amounts.expand_as(acts), acts)


def bind_edits(
    edits: Sequence[Edit],
    sae: Sae | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> LayerEdits:
    """The edits of one layer with the tensors they need of its SAE; directions need none.

    Raises EditError for a feature that the SAE does not have, and for a read-out clamp whose own
    direction does not move it.
    """
    if device is None:
        device = torch.device("cpu") if sae is None else sae.W_enc.device
    rows = [_reader_row(edit, sae) for edit in edits]
    reader = _stack_rows(rows, sae, dtype, device)
    d = torch.stack([_decoder_column(edit, sae) for edit in edits]).to(device, dtype)
    gain = (reader.readout.w * d).sum(1)
    for edit, c in zip(edits, gain.tolist(), strict=True):
        if edit.op == "readout_clamp" and abs(c) < _LEAST_GAIN:
            raise EditError(
                f"edit of {edit.name}: its direction does not move its own read-out "
                f"(gain {c:.1e}); use clamp"
            )
    return _assemble(tuple(edits), reader, d, gain)


class WatchedFeature(NamedTuple):
    """A feature that a condition reads, and whether it fires by the SAE's own rule only."""

    feature: Feature
    topk: bool


def condition_reader(
    watched: Sequence[WatchedFeature], sae: Sae, dtype: torch.dtype = torch.float32
) -> ActivationReader:
    """Reads the features of conditions; raises EditError for one that the SAE does not have."""
    rows = [_feature_row(feature, sae, gated=topk) for feature, topk in watched]
    return _stack_rows(rows, sae, dtype, sae.W_enc.device)


class _ReaderRow(NamedTuple):
    """One row of an ActivationReader; `gated`: it needs the SAE's own activation."""

    w: Float[Tensor, "d_model"]
    b: Float[Tensor, ""]
    id: int
    gated: bool


def _reader_row(edit: Edit, sae: Sae | None) -> _ReaderRow:
    if edit.direction is not None:
        d = torch.tensor(edit.direction.values, dtype=torch.float64)
        return _ReaderRow(d / d.norm(), torch.zeros((), dtype=d.dtype), id=-1, gated=False)
    if sae is None:
        raise EditError(f"edit of {edit.name}: there is no SAE of layer {edit.layer} here")
    gated = edit.gate == "topk" and edit.op in ("scale", "clamp")
    return _feature_row(edit.target_feature, sae, gated=gated)


def _feature_row(feature: Feature, sae: Sae, *, gated: bool) -> _ReaderRow:
    layer, d_sae = sae.spec.layer, sae.spec.d_sae
    if feature.layer != layer:
        raise EditError(f"edit of {feature}: this is the SAE of layer {layer}")
    if feature.id >= d_sae:
        raise EditError(
            f"edit of {feature}: the SAE of layer {layer} has {d_sae} features (ids 0-{d_sae - 1})"
        )
    return _ReaderRow(sae.W_enc[feature.id], sae.b_enc[feature.id], feature.id, gated)


def _stack_rows(
    rows: Sequence[_ReaderRow], sae: Sae | None, dtype: torch.dtype, device: torch.device
) -> ActivationReader:
    w = torch.stack([row.w for row in rows]).to(device, dtype)
    b = torch.stack([row.b for row in rows]).to(device, dtype)
    ids = torch.tensor([row.id for row in rows], device=device)
    gated = torch.tensor([row.gated for row in rows], device=device)
    encoder = None
    if sae is not None and gated.any():
        encoder = replace(sae, mapped=())  # every step reads all of its pages: keep them
    return ActivationReader(Readout(w, b), ids, None if gated.all() else ~gated, encoder)


def _decoder_column(edit: Edit, sae: Sae | None) -> Float[Tensor, "d_model"]:
    """What the edit writes along: a decoder column or a direction, as they are stored."""
    if edit.direction is not None:
        return torch.tensor(edit.direction.values)
    if sae is None or sae.W_dec is None:
        raise EditError(
            f"the SAE of layer {edit.layer} was loaded without its decoder: "
            "load_sae(..., decoder=True)"
        )
    return sae.W_dec[:, edit.target_feature.id]


def _assemble(
    edits: tuple[Edit, ...],
    reader: ActivationReader,
    d: Float[Tensor, "n d_model"],
    gain: Float[Tensor, "n"],
) -> LayerEdits:
    constant, by_act, by_read = _amount_terms(edits, d, gain)
    readout = _amount_readout(edits, reader.readout, d)
    return LayerEdits(
        edits=edits,
        reader=reader,
        d=d,
        gain=gain,
        constant=constant,
        by_act=by_act if by_act.any() else None,
        by_read=by_read if by_read.any() else None,
        own_readout=None if readout is reader.readout else readout,
    )


def _amount_terms(
    edits: Sequence[Edit], d: Float[Tensor, "n d_model"], gain: Float[Tensor, "n"]
) -> Float[Tensor, "3 n"]:
    """The constant part of each amount, its multiple of a, and its multiple of the read-out."""
    terms = torch.zeros(3, len(edits), dtype=torch.float64)
    constant, by_act, by_read = terms
    gains = gain.double().tolist()
    norms = d.double().norm(dim=1).tolist()
    for row, edit in enumerate(edits):
        s = edit.amount
        match edit.op:
            case "add":
                constant[row] = s
            case "scale":
                by_act[row] = s
            case "clamp":
                constant[row] = s
                by_act[row] = -1
            case "readout_clamp":
                constant[row] = s / gains[row]
                by_read[row] = -1 / gains[row]
            case "project":
                by_read[row] = -s / norms[row]
    return terms.to(d)


def _amount_readout(
    edits: Sequence[Edit], readout: Readout, d: Float[Tensor, "n d_model"]
) -> Readout:
    """What amounts depend on: projections read along what they write, others what gates read."""
    projected = torch.tensor([edit.op == "project" for edit in edits], device=d.device)
    norms = d.double().norm(dim=1, keepdim=True)
    w = torch.where(projected[:, None], (d.double() / norms).to(d), readout.w)
    b = torch.where(projected, 0, readout.b)
    if torch.equal(w, readout.w) and torch.equal(b, readout.b):
        return readout
    return Readout(w, b)
