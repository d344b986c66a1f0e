"""What edits do to a residual: pure functions on tensors. Every edit of a layer is computed from
the same residual.

With z = w·h + b (the feature's encoder row and bias), a its activation, d its decoder column and
c = w·d:

    add            h + s·d
    scale          h + s·a·d            s = -1 removes the feature's contribution
    clamp          h + (t - a)·d        keeps what the SAE does not explain; t = 0 is ablation
    readout_clamp  h + ((t - z)/c)·d    the feature's pre-activation becomes t
    project        h - s·(d̂·h)·d̂        removes the component along the direction, whatever the
                                        feature does

For a plain direction, w = d̂ and b = 0. The read-out clamp is then h + (t - d̂·h)·d̂, after which
the component along d̂ is t.

The activation a is relu(z). With the gate `topk` it is z if the SAE itself activates the feature,
otherwise 0. An edit with a condition applies only at positions where the condition's feature has an
activation, under the edit's gate, above the condition's threshold.

An SAE that normalises its input per token (`engine/input_norm.py`) has z = f·(w·h) + b with a
factor f per token, and a and t in its own unit u: `scale` and `clamp` then add u·s·a·d and
u·(t - a)·d.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saescope.control.edits import Edit
from saescope.engine.input_norm import token_scale
from saescope.engine.sae import Sae
from saescope.errors import EditError
from saescope.sources.catalog import Feature
from saescope.sources.formats.tensors import InputNorm

_MIN_READOUT_GAIN = 1e-6  # below this, clamping is ill-conditioned


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


@dataclass(frozen=True, eq=False)
class EditTensors:
    """The tensors of one layer's edits, one row per edit.

    The coefficient of column d is `constant + by_act·a + by_read·r`, where a is the activation and
    r the read-out: d̂·h for `project`, otherwise z. `by_act` and `by_read` are None if all zero.
    `coefficient_readout` computes r; it is None if r is z for every edit. `in_activations` marks
    the edits whose coefficient is an amount of activation, in the SAE's unit.
    """

    edits: tuple[Edit, ...]
    reader: ActivationReader
    write_directions: Float[Tensor, "n d_model"]
    gain: Float[Tensor, "n"]
    constant: Float[Tensor, "n"]
    by_act: Float[Tensor, "n"] | None
    by_read: Float[Tensor, "n"] | None
    coefficient_readout: Readout | None
    in_activations: Bool[Tensor, "n"]

    @property
    def norms(self) -> Float[Tensor, "n"]:
        """Lengths of the decoder columns and directions as stored."""
        norms: Tensor = self.write_directions.norm(dim=1)
        return norms

    def along_random_directions(self, seed: int) -> "EditTensors":
        """Return the same edits along random directions of the same lengths, as a control."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.write_directions.shape, generator=generator)
        noise = noise.to(self.write_directions)
        d = noise / noise.norm(dim=1, keepdim=True) * self.norms[:, None]
        return _assemble(self.edits, self.reader, d, self.gain)


class Coefficients(NamedTuple):
    """The coefficient of each edit's column, and the activation of its feature."""

    values: Float[Tensor, "*b n"]
    acts: Float[Tensor, "*b n"]


def delta(tensors: EditTensors, h: Float[Tensor, "*b d_model"]) -> Float[Tensor, "*b d_model"]:
    """Return the sum that all edits add to each residual."""
    return coefficients(tensors, h).values @ tensors.write_directions


def coefficients(tensors: EditTensors, h: Float[Tensor, "*b d_model"]) -> Coefficients:
    """Return the coefficient of each edit's column at each residual."""
    pre_acts = tensors.reader.readout(h)
    acts = tensors.reader.acts(h, pre_acts)
    values = tensors.constant
    if tensors.by_act is not None:
        values = torch.addcmul(values, tensors.by_act, acts)
    if tensors.by_read is not None:
        read = pre_acts if tensors.coefficient_readout is None else tensors.coefficient_readout(h)
        values = torch.addcmul(values, tensors.by_read, read)
    units = tensors.reader.readout.units(h, tensors.in_activations)
    if units is not None:
        values = values * units
    return Coefficients(values.expand_as(acts), acts)


def bind_edits(
    edits: Sequence[Edit],
    sae: Sae | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> EditTensors:
    """Return the tensors of one layer's edits, from its SAE; directions need no SAE.

    Raises EditError for a feature that the SAE does not have, and for a read-out clamp whose
    direction is orthogonal to its read-out, or of an SAE that normalises its input.
    """
    if device is None:
        device = torch.device("cpu") if sae is None else sae.W_enc.device
    rows = [_reader_row(edit, sae) for edit in edits]
    reader = _stack_rows(rows, sae, dtype, device)
    d = torch.stack([_decoder_column(edit, sae) for edit in edits]).to(device, dtype)
    gain = (reader.readout.w * d).sum(1)
    for edit, c in zip(edits, gain.tolist(), strict=True):
        if edit.op == "readout_clamp" and edit.feature is not None and _normalises(sae):
            raise EditError(
                f"edit of {edit.name}: its SAE normalises each residual, so a change of the "
                "residual does not set the read-out: use clamp"
            )
        if edit.op == "readout_clamp" and abs(c) < _MIN_READOUT_GAIN:
            raise EditError(
                f"edit of {edit.name}: its direction is orthogonal to its read-out "
                f"(gain {c:.1e}); use clamp"
            )
    return _assemble(tuple(edits), reader, d, gain)


def _normalises(sae: Sae | None) -> bool:
    return sae is not None and sae.input_norm != "none"


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
    rows = [_feature_row(feature, sae, needs_encode=topk) for feature, topk in watched]
    return _stack_rows(rows, sae, dtype, sae.W_enc.device)


class _ReaderRow(NamedTuple):
    """One row of an ActivationReader; `needs_encode`: its activation needs an SAE encode."""

    w: Float[Tensor, "d_model"]
    b: Float[Tensor, ""]
    id: int
    needs_encode: bool


def _reader_row(edit: Edit, sae: Sae | None) -> _ReaderRow:
    if edit.direction is not None:
        d = torch.tensor(edit.direction.values, dtype=torch.float64)
        return _ReaderRow(d / d.norm(), torch.zeros((), dtype=d.dtype), id=-1, needs_encode=False)
    if sae is None:
        raise EditError(f"edit of {edit.name}: no SAE for layer {edit.layer} was passed")
    needs_encode = edit.gate == "topk" and edit.op in ("scale", "clamp")
    return _feature_row(edit.target_feature, sae, needs_encode=needs_encode)


def _feature_row(feature: Feature, sae: Sae, *, needs_encode: bool) -> _ReaderRow:
    layer, d_sae = sae.spec.layer, sae.spec.d_sae
    if feature.layer != layer:
        raise EditError(f"edit of {feature}: this is the SAE of layer {layer}")
    if feature.id >= d_sae:
        raise EditError(
            f"edit of {feature}: the SAE of layer {layer} has {d_sae} features (ids 0-{d_sae - 1})"
        )
    return _ReaderRow(sae.W_enc[feature.id], sae.b_enc[feature.id], feature.id, needs_encode)


def _stack_rows(
    rows: Sequence[_ReaderRow], sae: Sae | None, dtype: torch.dtype, device: torch.device
) -> ActivationReader:
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


def _decoder_column(edit: Edit, sae: Sae | None) -> Float[Tensor, "d_model"]:
    """Return the stored vector that the edit writes along: a decoder column or a direction."""
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
) -> EditTensors:
    terms = _coefficient_terms(edits, d, gain)
    readout = _coefficient_readout(edits, reader.readout, d)
    return EditTensors(
        edits=edits,
        reader=reader,
        write_directions=d,
        gain=gain,
        constant=terms.constant,
        by_act=terms.by_act if terms.by_act.any() else None,
        by_read=terms.by_read if terms.by_read.any() else None,
        coefficient_readout=None if readout is reader.readout else readout,
        in_activations=torch.tensor([edit.op in ("scale", "clamp") for edit in edits]).to(d.device),
    )


class _CoefficientTerms(NamedTuple):
    """The parts of each coefficient: a constant, and multiples of a and of r."""

    constant: Float[Tensor, "n"]
    by_act: Float[Tensor, "n"]
    by_read: Float[Tensor, "n"]


def _coefficient_terms(
    edits: Sequence[Edit], d: Float[Tensor, "n d_model"], gain: Float[Tensor, "n"]
) -> _CoefficientTerms:
    constant = torch.zeros(len(edits), dtype=torch.float64)
    by_act = torch.zeros_like(constant)
    by_read = torch.zeros_like(constant)
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
    return _CoefficientTerms(constant.to(d), by_act.to(d), by_read.to(d))


def _coefficient_readout(
    edits: Sequence[Edit], readout: Readout, d: Float[Tensor, "n d_model"]
) -> Readout:
    """Return the read-out for coefficients: write direction for `project`, else encoder row."""
    projected = torch.tensor([edit.op == "project" for edit in edits], device=d.device)
    norms = d.double().norm(dim=1, keepdim=True)
    w = torch.where(projected[:, None], (d.double() / norms).to(d), readout.w)
    b = torch.where(projected, 0, readout.b)
    if torch.equal(w, readout.w) and torch.equal(b, readout.b):
        return readout
    return Readout(w, b)
