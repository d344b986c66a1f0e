"""Linear changes of the residual, h ↦ h − U·diag(s)·Vᵀh + k: pure functions on tensors.

A projection has U = V = Q with orthonormal columns; a read-out clamp has V = w and U = d/(w·d). After the norm
h ↦ γ ⊙ h/rms(h) a projection is the one with γ ⊙ Q and Q/γ.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.errors import EditError

_DEPENDENT = 1e-6
_LEAST_GAIN = 1e-6


@dataclass(frozen=True)
class ResidualMap:
    """h ↦ h − U·diag(s)·Vᵀh + k, in float64."""

    U: Float[Tensor, "d_model n"]
    V: Float[Tensor, "d_model n"]
    s: Float[Tensor, "n"]
    k: Float[Tensor, "d_model"] | None = None

    def __call__(self, h: Float[Tensor, "*b d_model"]) -> Float[Tensor, "*b d_model"]:
        """The map of each residual, computed in its dtype (float32 at least)."""
        wide = h if h.dtype in (torch.float32, torch.float64) else h.float()
        U, V, s = (t.to(wide) for t in (self.U, self.V, self.s))
        changed = wide - ((wide @ V) * s) @ U.T
        return (changed if self.k is None else changed + self.k.to(wide)).to(h.dtype)

    @property
    def linear(self) -> "ResidualMap":
        """Without the constant."""
        return replace(self, k=None)

    def after_norm(self, gain: Float[Tensor, "d_model"]) -> "ResidualMap":
        """The map of a norm's output that is this map of what it normalises: γ ⊙ M(γ⁻¹ ⊙ n).

        Raises EditError where γ is 0 for what this map reads.
        """
        dead = gain.abs() <= _LEAST_GAIN * gain.abs().max()
        if (self.V[dead] != 0).any():
            raise EditError(
                f"a norm shuts {int(dead.sum())} coordinates off (γ = 0) that the direction has, so what reads after "
                "it cannot tell the component: use --method every-write"
            )
        V = torch.where(self.V == 0, 0, self.V / gain[:, None])
        return ResidualMap(gain[:, None] * self.U, V, self.s)

    def before_norm(self, gain: Float[Tensor, "d_model"]) -> "ResidualMap":
        """A map of a norm's input that takes out of its output just what this map does, if not only that.

        The norm gives every output its size, so weights before it cannot do exactly this. Exactly γ⁻¹ ⊙ M(γ ⊙ y) would
        have the right direction, but blow the input up where γ is small, and with that shrink everything else; of the
        ways between that and the smallest change of the input the one with the least expected error is taken, for
        inputs whose coordinates are alike and independent.
        """
        V = gain[:, None] * self.V
        size = gain.pow(2).mean()
        candidates = [self._spread(gain, V, float(size * 10**power)) for power in range(-12, 4)]
        return ResidualMap(min(candidates, key=lambda U: self._error(gain, U, V)), V, self.s)

    def _spread(self, gain: Tensor, V: Tensor, damping: float) -> Float[Tensor, "d_model n"]:
        """U with VᵀU as in this map, and γ ⊙ U as near to this map's U as the damping lets it be."""
        U: Tensor = gain[:, None] * self.U / (gain.pow(2) + damping)[:, None]
        back: Tensor = torch.linalg.pinv(V.T @ U) @ (self.V.T @ self.U)
        return U @ back

    def _error(self, gain: Tensor, U: Tensor, V: Tensor) -> float:
        """Squared error of the output, relative to its size: of its scale and of what is taken out beside."""
        scale = (U @ V.T).pow(2).sum() / (2 * len(gain))
        beside = ((gain[:, None] * U - self.U) @ self.V.T).pow(2).sum() / len(gain)
        return float(scale**2 + beside)


def projection(
    directions: Sequence[Float[Tensor, "d_model"]], strengths: Sequence[float]
) -> ResidualMap:
    """Removes these shares of the components along some directions, made orthonormal first: I − Q·diag(s)·Qᵀ.

    Q = D(DᵀD)^(−½) is the orthonormal set nearest to the unit directions D (Löwdin 1950), so their order does not
    matter. Raises EditError for dependent directions of different strengths: there is no telling which is meant.
    """
    D = torch.stack([d.double() / d.double().norm() for d in directions], dim=1)
    s = torch.tensor(list(strengths), dtype=torch.float64)
    lengths, E = torch.linalg.eigh(D.T @ D)
    kept = lengths > _DEPENDENT * lengths.max()
    if not kept.all() and s.unique().numel() > 1:
        raise EditError(
            "directions that depend on one another are projected by different shares: give one share"
        )
    Q = D @ (E[:, kept] * lengths[kept].rsqrt()) @ E[:, kept].T
    return ResidualMap(Q, Q, s)


def readout_clamp(
    w: Float[Tensor, "n d_model"],
    b: Float[Tensor, "n"],
    d: Float[Tensor, "n d_model"],
    target: Float[Tensor, "n"],
) -> ResidualMap:
    """Gives every read-out w·h + b its target by moving along d: h + D·C⁻¹·(t − b − Wh) with C = WD.

    Raises EditError where the directions cannot move the read-outs apart from one another.
    """
    w, b, d, target = (t.double() for t in (w, b, d, target))
    C = w @ d.T
    if torch.linalg.cond(C) > 1e6:
        raise EditError(
            "these directions do not move their read-outs apart from one another: clamp fewer at once"
        )
    U = torch.linalg.solve(C.T, d).T
    return ResidualMap(
        U, w.T.contiguous(), torch.ones(len(w), dtype=torch.float64), U @ (target - b)
    )


def shift(vector: Float[Tensor, "d_model"]) -> ResidualMap:
    """Adds a constant."""
    none = torch.zeros(len(vector), 0, dtype=torch.float64)
    return ResidualMap(none, none, none[0], vector.double())
