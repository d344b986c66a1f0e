"""What edits do to a residual: pure functions on tensors. Every edit of a layer is computed from the same residual.

With z = w·h + b (the feature's encoder row and bias), a its activation, d its decoder column and c = w·d:

    add            h + s·d
    scale          h + s·a·d            s = -1 takes the feature's own contribution out
    clamp          h + (t - a)·d        keeps what the SAE does not explain; t = 0 is ablation
    readout_clamp  h + ((t - z)/c)·d    the feature's pre-activation becomes t
    project        h - s·(d̂·h)·d̂        removes the component along the direction, whatever the feature does

A plain direction d is edited in the same words with w = d̂ and b = 0: add h + s·d, project as above, and the read-out
clamp h + (t - d̂·h)·d̂, after which the component along it is t.

The activation is relu(z), or with the gate `topk` z only where the SAE's own activation lets it through: where it is
among the k largest, or above its threshold. An edit with a condition acts where
the other feature's activation, under the edit's gate, is above the condition's number.
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


class Reader(NamedTuple):
    """Reads activations a of some features: encoder rows, biases, ids (-1 for a direction), and the gates.

    `every` says of which the relu counts as it is, None where of none; `sae` is there where a full encode is needed.
    """

    w: Float[Tensor, "n d_model"]
    b: Float[Tensor, "n"]
    ids: Int[Tensor, "n"]
    every: Bool[Tensor, "n"] | None
    sae: Sae | None

    def __call__(
        self, h: Float[Tensor, "*b d_model"]
    ) -> tuple[Float[Tensor, "*b n"], Float[Tensor, "*b n"]]:
        """Pre-activations z, and activations a under each one's gate."""
        z = torch.nn.functional.linear(h, self.w, self.b)
        a = z.relu()
        if self.sae is None:
            return z, a
        within = self.sae.fires(h, self.ids.to(self.sae.W_enc.device)).to(self.ids.device)
        return z, torch.where(within if self.every is None else within | self.every, a, 0)


@dataclass(frozen=True)
class LayerEdits:
    """Some edits of one layer with their tensors, a row each: what is read, decoder columns, read-out gains.

    The amounts of the columns that are added are `constant + by_act·a + by_read·r`, where r is z, or d̂·h for
    projections: `along` are then the rows and biases that r is read with.
    """

    edits: tuple[Edit, ...]
    reader: Reader
    d: Float[Tensor, "n d_model"]
    gain: Float[Tensor, "n"]
    constant: Float[Tensor, "n"]
    by_act: Float[Tensor, "n"] | None
    by_read: Float[Tensor, "n"] | None
    along: tuple[Float[Tensor, "n d_model"], Float[Tensor, "n"]] | None

    @property
    def norms(self) -> Float[Tensor, "n"]:
        """Lengths of the decoder columns and directions as they are stored."""
        norms: Tensor = self.d.norm(dim=1)
        return norms

    def turned(self, seed: int) -> "LayerEdits":
        """The same edits along random directions of the same lengths, a control."""
        drawn = torch.randn(self.d.shape, generator=torch.Generator().manual_seed(seed)).to(self.d)
        d = drawn / drawn.norm(dim=1, keepdim=True) * self.norms[:, None]
        return _assemble(self.edits, self.reader, d, self.gain)


def bind_edits(
    edits: Sequence[Edit],
    sae: Sae | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> LayerEdits:
    """The edits of one layer with what they need of its SAE; directions need none.

    Raises EditError for a feature that the SAE has not, and for a read-out clamp that its own direction cannot move.
    """
    at = device or (sae.W_enc.device if sae is not None else torch.device("cpu"))
    gates = [edit.gate == "topk" and edit.op in ("scale", "clamp") for edit in edits]
    ids = [-1 if edit.direction is not None else edit.target_feature.id for edit in edits]
    reader = _reader([_read(edit, sae) for edit in edits], ids, gates, sae, dtype, at)
    d = torch.stack([_written(edit, sae) for edit in edits]).to(at, dtype)
    gain = (reader.w * d).sum(1)
    for edit, c in zip(edits, gain.tolist(), strict=True):
        if edit.op == "readout_clamp" and abs(c) < 1e-6:
            raise EditError(
                f"edit of {edit.name}: its direction does not move its own read-out (gain {c:.1e}); use clamp"
            )
    return _assemble(tuple(edits), reader, d, gain)


def watch(
    wanted: Sequence[tuple[Feature, bool]], sae: Sae, dtype: torch.dtype = torch.float32
) -> Reader:
    """Reads the features that conditions ask of, each with whether only the top k counts; raises EditError."""
    rows = [(_row(sae, feature), sae.b_enc[feature.id]) for feature, _ in wanted]
    gates = [gate for _, gate in wanted]
    return _reader(rows, [feature.id for feature, _ in wanted], gates, sae, dtype, sae.W_enc.device)


_Row = tuple[Float[Tensor, "d_model"], Float[Tensor, ""]]  # an encoder row and its bias


def _reader(
    rows: Sequence[_Row],
    ids: Sequence[int],
    gates: Sequence[bool],
    sae: Sae | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Reader:
    w = torch.stack([row[0] for row in rows]).to(device, dtype)
    b = torch.stack([row[1] for row in rows]).to(device, dtype)
    every = None if all(gates) else ~torch.tensor(gates, device=device)
    # Its pages are not given back: every step reads all of them.
    full = replace(sae, mapped=()) if sae is not None and any(gates) else None
    return Reader(w, b, torch.tensor(ids, device=device), every, full)


def _read(edit: Edit, sae: Sae | None) -> _Row:
    """What the edit reads with."""
    if edit.direction is not None:
        d = torch.tensor(edit.direction.values, dtype=torch.float64)
        return d / d.norm(), torch.zeros((), dtype=d.dtype)
    if sae is None:
        raise EditError(f"edit of {edit.name}: there is no SAE of layer {edit.layer} here")
    return _row(sae, edit.target_feature), sae.b_enc[edit.target_feature.id]


def _row(sae: Sae, feature: Feature) -> Float[Tensor, "d_model"]:
    """A feature's encoder row; raises EditError where the SAE has it not."""
    if feature.layer != sae.spec.layer:
        raise EditError(f"edit of {feature}: this is the SAE of layer {sae.spec.layer}")
    if feature.id >= sae.spec.d_sae:
        raise EditError(
            f"edit of {feature}: the SAE of layer {feature.layer} has {sae.spec.d_sae} features"
        )
    return sae.W_enc[feature.id]


def _written(edit: Edit, sae: Sae | None) -> Float[Tensor, "d_model"]:
    """What the edit writes along: a decoder column or a direction, as they are stored."""
    if edit.direction is not None:
        return torch.tensor(edit.direction.values)
    if sae is None or sae.W_dec is None:
        raise EditError(
            f"the SAE of layer {edit.layer} was loaded without its decoder: load_sae(..., decoder=True)"
        )
    return sae.W_dec[:, edit.target_feature.id]


def _amounts(edit: Edit, gain: float, norm: float) -> tuple[float, float, float]:
    """What is added along d: a constant, a multiple of a, and one of what is read along d."""
    s = edit.amount
    match edit.op:
        case "add":
            return s, 0.0, 0.0
        case "scale":
            return 0.0, s, 0.0
        case "clamp":
            return s, -1.0, 0.0
        case "readout_clamp":
            return s / gain, 0.0, -1 / gain
        case "project":
            return 0.0, 0.0, -s / norm


def _assemble(
    edits: tuple[Edit, ...], reader: Reader, d: Float[Tensor, "n d_model"], gain: Float[Tensor, "n"]
) -> LayerEdits:
    norms = d.double().norm(dim=1)
    lines = zip(edits, gain.double().tolist(), norms.tolist(), strict=True)
    amounts = torch.tensor([_amounts(*line) for line in lines], dtype=torch.float64)
    constant, by_act, by_read = amounts.T.to(d).contiguous()
    # A projection reads along what it writes, the others read what the gate reads.
    projected = torch.tensor([edit.op == "project" for edit in edits], device=d.device)
    w = torch.where(projected[:, None], (d.double() / norms[:, None]).to(d), reader.w)
    b = torch.where(projected, 0, reader.b)
    own = torch.equal(w, reader.w) and torch.equal(b, reader.b)
    return LayerEdits(
        edits=edits,
        reader=reader,
        d=d,
        gain=gain,
        constant=constant,
        by_act=by_act if by_act.any() else None,
        by_read=by_read if by_read.any() else None,
        along=None if own else (w, b),
    )


def coefficients(
    bound: LayerEdits, h: Float[Tensor, "*b d_model"]
) -> tuple[Float[Tensor, "*b n"], Float[Tensor, "*b n"]]:
    """How much of each edit's decoder column is added to each residual, and the features' activations."""
    z, a = bound.reader(h)
    amounts = bound.constant
    if bound.by_act is not None:
        amounts = torch.addcmul(amounts, bound.by_act, a)
    if bound.by_read is not None:
        r = z if bound.along is None else torch.nn.functional.linear(h, *bound.along)
        amounts = torch.addcmul(amounts, bound.by_read, r)
    return amounts.expand_as(a), a


def delta(bound: LayerEdits, h: Float[Tensor, "*b d_model"]) -> Float[Tensor, "*b d_model"]:
    """What all edits together add to each residual."""
    return coefficients(bound, h)[0] @ bound.d
