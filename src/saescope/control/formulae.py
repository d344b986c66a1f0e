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
among the k largest, or above its threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saescope.control.edits import Edit
from saescope.engine.sae import Sae
from saescope.errors import EditError


@dataclass(frozen=True)
class LayerEdits:
    """Some edits of one layer with their tensors, a row each: encoder rows, biases, decoder columns, read-out gains.

    A direction d reads its own component: its encoder row is d̂, its bias 0, and so its gain its length.
    """

    edits: tuple[Edit, ...]
    w: Float[Tensor, "n d_model"]
    b: Float[Tensor, "n"]
    d: Float[Tensor, "n d_model"]
    gain: Float[Tensor, "n"]
    ids: Int[Tensor, "n"]
    sae: Sae | None

    @property
    def norms(self) -> Float[Tensor, "n"]:
        """Lengths of the decoder columns and directions as they are stored."""
        norms: Tensor = self.d.norm(dim=1)
        return norms


def bind(
    edits: Sequence[Edit],
    sae: Sae | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> LayerEdits:
    """The edits of one layer with what they need of its SAE; directions need none.

    Raises EditError for a feature that the SAE has not, and for a read-out clamp that its own direction cannot move.
    """
    at = device or (sae.W_enc.device if sae is not None else torch.device("cpu"))
    parts = [_tensors(edit, sae) for edit in edits]
    w, d = (torch.stack([part[n] for part in parts]).to(at, dtype) for n in (0, 2))
    b = torch.stack([part[1] for part in parts]).to(at, dtype)
    ids = torch.tensor([-1 if edit.direction is not None else edit.at.id for edit in edits], device=at)
    gain = (w * d).sum(1)
    for edit, c in zip(edits, gain.tolist(), strict=True):
        if edit.op == "readout_clamp" and abs(c) < 1e-6:
            raise EditError(
                f"edit of {edit.name}: its direction does not move its own read-out (gain {c:.1e}); use clamp"
            )
    needs_all = any(edit.gate == "topk" and edit.op in ("scale", "clamp") for edit in edits)
    return LayerEdits(tuple(edits), w, b, d, gain, ids, sae if needs_all else None)


def _tensors(
    edit: Edit, sae: Sae | None
) -> tuple[Float[Tensor, "d_model"], Float[Tensor, ""], Float[Tensor, "d_model"]]:
    """What the edit reads with (row and bias) and what it writes along."""
    if edit.direction is not None:
        d = torch.from_numpy(edit.direction.values.astype("float64"))
        return d / d.norm(), torch.zeros((), dtype=d.dtype), d
    feature = edit.at
    if sae is None or feature.layer != sae.spec.layer:
        raise EditError(f"edit of {feature}: there is no SAE of layer {feature.layer} here")
    if feature.id >= sae.spec.d_sae:
        raise EditError(f"edit of {feature}: the SAE of layer {feature.layer} has {sae.spec.d_sae} features")
    if sae.W_dec is None:
        raise EditError(f"the SAE of layer {feature.layer} was loaded without its decoder: load_sae(..., decoder=True)")
    return sae.W_enc[feature.id], sae.b_enc[feature.id], sae.W_dec[:, feature.id]


def activations(bound: LayerEdits, h: Float[Tensor, "n d_model"]) -> tuple[Float[Tensor, "n e"], Float[Tensor, "n e"]]:
    """Pre-activations z of every edit's feature, and its activation a under the edit's gate."""
    z = h @ bound.w.T + bound.b
    a = z.relu()
    if bound.sae is not None:
        within = bound.sae.fires(h, bound.ids)
        for column, edit in enumerate(bound.edits):
            if edit.gate == "topk":
                a[:, column] = torch.where(within[:, column], a[:, column], 0)
    return z, a


def coefficients(bound: LayerEdits, h: Float[Tensor, "n d_model"]) -> tuple[Float[Tensor, "n e"], Float[Tensor, "n e"]]:
    """How much of each edit's decoder column is added to each residual, and the features' activations."""
    z, a = activations(bound, h)
    columns = []
    for column, edit in enumerate(bound.edits):
        s = edit.amount
        match edit.op:
            case "add":
                columns.append(torch.full_like(a[:, column], s))
            case "scale":
                columns.append(s * a[:, column])
            case "clamp":
                columns.append(s - a[:, column])
            case "readout_clamp":
                columns.append((s - z[:, column]) / bound.gain[column])
            case "project":
                d = bound.d[column]
                columns.append(-s * (h @ d) / (d @ d))
    return torch.stack(columns, dim=1), a


def delta(bound: LayerEdits, h: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """What all edits together add to each residual."""
    return coefficients(bound, h)[0] @ bound.d
