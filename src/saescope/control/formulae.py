"""What edits do to a residual: pure functions on tensors. Every edit of a layer is computed from
the same residual.

With z = w·h + b (the feature's encoder row and bias), a its activation, d its decoder column and
c = w·d:

    add            h + s·d
    scale          h + s·a·d            s = -1 removes the feature's contribution
    clamp          h + (t - a)·d        keeps what the SAE does not explain; t = 0 is ablation
    readout_clamp  h + ((t - z)/c)·d    the feature's pre-activation becomes t
    project        h - s·(d̂·(h - μ))·d̂  removes what differs from the mean along the direction,
                                        whatever the feature does

μ is the mean residual over neutral text that an edit may carry (`Edit.about`), otherwise zero.
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
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saescope.control.edits import Edit
from saescope.control.readouts import ActivationReader, ReaderRow, Readout, feature_row, stack_rows
from saescope.engine.sae import Sae
from saescope.errors import EditError

_MIN_READOUT_GAIN = 1e-6  # below this, clamping is ill-conditioned


@dataclass(frozen=True, eq=False)
class EditTensors:
    """The tensors of one layer's edits, one row per edit.

    The coefficient of column d is `constant + by_act·a + by_read·r`, where a is the activation and
    r the read-out: d̂·(h - μ) for `project`, otherwise z. `by_act` and `by_read` are None if all
    zero. `coefficient_readout` computes r; it is None if r is z for every edit. `in_activations`
    marks the edits whose coefficient is an amount of activation, in the SAE's unit.
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
    def spread(self) -> float | None:
        """The spread of this layer's residuals about their mean; None if no edit carries it."""
        return next((edit.about.spread for edit in self.edits if edit.about is not None), None)

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
    reader = stack_rows(rows, sae, dtype, device)
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


def _reader_row(edit: Edit, sae: Sae | None) -> ReaderRow:
    if edit.direction is not None:
        d = torch.tensor(edit.direction.values, dtype=torch.float64)
        return ReaderRow(d / d.norm(), torch.zeros((), dtype=d.dtype), id=-1, needs_encode=False)
    if sae is None:
        raise EditError(f"edit of {edit.name}: no SAE for layer {edit.layer} was passed")
    needs_encode = edit.gate == "topk" and edit.op in ("scale", "clamp")
    return feature_row(edit.target_feature, sae, needs_encode=needs_encode)


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
    """Return the read-out for coefficients: d̂·(h - μ) for `project`, else the encoder row."""
    if not any(edit.op == "project" for edit in edits):
        return readout
    w, b = readout.w.clone(), readout.b.clone()
    for row, edit in enumerate(edits):
        if edit.op == "project":
            unit = d[row].double() / d[row].double().norm()
            w[row] = unit
            b[row] = 0 if edit.about is None else -(unit @ _mean_of(edit, len(unit)).to(unit))
    if torch.equal(w, readout.w) and torch.equal(b, readout.b):
        return readout
    return Readout(w, b)


def _mean_of(edit: Edit, d_model: int) -> Float[Tensor, "d_model"]:
    """Return the mean that an edit acts about."""
    assert edit.about is not None
    if len(edit.about.values) != d_model:
        raise EditError(
            f"edit of {edit.name}: the mean it acts about has width {len(edit.about.values)}, but "
            f"its direction has {d_model}"
        )
    return torch.tensor(edit.about.values)
