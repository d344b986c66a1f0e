"""Affine maps of the residual, h ↦ h − U·diag(s)·Vᵀh + k: pure functions on tensors.

A projection has U = V = Q with orthonormal columns; a read-out clamp has V = w and U = d/(w·d).
After the norm h ↦ γ ⊙ h/rms(h), a projection is the map with γ ⊙ Q and Q/γ.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.errors import EditError

_DEPENDENT = 1e-6  # relative eigenvalue below which directions depend on one another
_ZERO_GAIN = 1e-6  # relative γ below which a norm shuts a coordinate off
_MAX_CONDITION = 1e6
_DAMPING_POWERS = range(-12, 4)


@dataclass(frozen=True, eq=False)
class ResidualMap:
    """h ↦ h − U·diag(s)·Vᵀh + k, in float64."""

    U: Float[Tensor, "d_model n"]
    V: Float[Tensor, "d_model n"]
    s: Float[Tensor, "n"]
    k: Float[Tensor, "d_model"] | None = None

    def __call__(self, h: Float[Tensor, "*b d_model"]) -> Float[Tensor, "*b d_model"]:
        """The map of each residual, computed in its dtype (float32 at least)."""
        wide = h if h.dtype in (torch.float32, torch.float64) else h.float()
        U, V, s = (factor.to(wide) for factor in (self.U, self.V, self.s))
        mapped = wide - ((wide @ V) * s) @ U.T
        if self.k is not None:
            mapped = mapped + self.k.to(wide)
        return mapped.to(h.dtype)

    @property
    def linear(self) -> "ResidualMap":
        """The map without its constant."""
        return replace(self, k=None)

    def after_norm(self, gain: Float[Tensor, "d_model"]) -> "ResidualMap":
        """The map of a norm's output that is this map of its normalised input: γ ⊙ M(γ⁻¹ ⊙ n).

        Raises EditError if γ is 0 at a coordinate that this map reads.
        """
        shut_off = gain.abs() <= _ZERO_GAIN * gain.abs().max()
        if (self.V[shut_off] != 0).any():
            raise EditError(
                f"a norm shuts off {int(shut_off.sum())} coordinates (γ = 0) that the direction "
                "has, so what reads after it cannot see the component: use "
                "method 'every-write'"
            )
        V = torch.where(self.V == 0, 0, self.V / gain[:, None])
        return ResidualMap(gain[:, None] * self.U, V, self.s)

    def before_norm(self, gain: Float[Tensor, "d_model"]) -> "ResidualMap":
        """A map of a norm's input that removes about the same from its output as this map.

        The norm rescales every output, so no weights before it can do exactly this. The exact
        direction, γ⁻¹ ⊙ M(γ ⊙ y), would blow the input up where γ is small and thereby shrink
        everything else. Of the maps between that one and the smallest change of the input, this is
        the one with the least expected error for inputs with independent, equal coordinates.
        """
        V = gain[:, None] * self.V
        mean_square = gain.pow(2).mean()
        candidates = []
        for power in _DAMPING_POWERS:
            damping = float(mean_square * 10**power)
            candidates.append(self._damped_spread(gain, V, damping))
        best = min(candidates, key=lambda U: self._expected_error(gain, U, V))
        return ResidualMap(best, V, self.s)

    def _damped_spread(self, gain: Tensor, V: Tensor, damping: float) -> Float[Tensor, "d_model n"]:
        """U with VᵀU as in this map, and γ ⊙ U as close to this map's U as the damping lets it."""
        U: Tensor = gain[:, None] * self.U / (gain.pow(2) + damping)[:, None]
        correction: Tensor = torch.linalg.pinv(V.T @ U) @ (self.V.T @ self.U)
        return U @ correction

    def _expected_error(self, gain: Tensor, U: Tensor, V: Tensor) -> float:
        """Squared relative error of the output: of its scale, and of what else is removed."""
        scale = (U @ V.T).pow(2).sum() / (2 * len(gain))
        removed_too = ((gain[:, None] * U - self.U) @ self.V.T).pow(2).sum() / len(gain)
        return float(scale**2 + removed_too)


def projection(
    directions: Sequence[Float[Tensor, "d_model"]], strengths: Sequence[float]
) -> ResidualMap:
    """Removes shares of the components along directions, made orthonormal first: I − Q·diag(s)·Qᵀ.

    Q = D(DᵀD)^(−½) is the orthonormal set closest to the unit directions D (Löwdin 1950), so their
    order does not matter. Raises EditError for dependent directions with different strengths, of
    which it is not clear which one counts.
    """
    unit_directions = [d.double() / d.double().norm() for d in directions]
    D = torch.stack(unit_directions, dim=1)
    s = torch.tensor(list(strengths), dtype=torch.float64)
    eigenvalues, E = torch.linalg.eigh(D.T @ D)
    independent = eigenvalues > _DEPENDENT * eigenvalues.max()
    if not independent.all() and s.unique().numel() > 1:
        raise EditError(
            "directions that depend on one another are projected by different shares: "
            "give them the same strength"
        )
    E, scale = E[:, independent], eigenvalues[independent].rsqrt()
    Q = D @ (E * scale) @ E.T
    return ResidualMap(Q, Q, s)


def readout_clamp(
    w: Float[Tensor, "n d_model"],
    b: Float[Tensor, "n"],
    d: Float[Tensor, "n d_model"],
    target: Float[Tensor, "n"],
) -> ResidualMap:
    """Moves along d so that every read-out w·h + b is its target: h + D·C⁻¹·(t − b − Wh), C = WD.

    Raises EditError if the directions cannot move the read-outs independently.
    """
    w, b, d, target = (tensor.double() for tensor in (w, b, d, target))
    C = w @ d.T
    if torch.linalg.cond(C) > _MAX_CONDITION:
        raise EditError(
            "these directions do not move their read-outs independently: clamp fewer at once"
        )
    U = torch.linalg.solve(C.T, d).T
    s = torch.ones(len(w), dtype=torch.float64)
    return ResidualMap(U, w.T.contiguous(), s, U @ (target - b))


def shift(vector: Float[Tensor, "d_model"]) -> ResidualMap:
    """Adds a constant."""
    no_columns = torch.zeros(len(vector), 0, dtype=torch.float64)
    return ResidualMap(no_columns, no_columns, no_columns[0], vector.double())
