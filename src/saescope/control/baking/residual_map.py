"""Affine maps of the residual, h ↦ h − U·diag(s)·Vᵀh + k: pure functions on tensors.

The columns of V read components of h, and the columns of U remove them. All of baking uses these
four names. A projection has U = V with orthonormal columns. A read-out clamp has V = w and
U = d/(w·d). After the norm h ↦ γ ⊙ h/rms(h), U becomes γ ⊙ U and V becomes V/γ.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saescope.errors import EditError

_DEPENDENT = 1e-6  # relative eigenvalue below which directions depend on one another
_ZERO_GAIN = 1e-6  # relative γ below which a norm zeroes a coordinate
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
        """Return the mapped residuals; float16 and bfloat16 are computed in float32."""
        h_float = h if h.dtype in (torch.float32, torch.float64) else h.float()
        U, V, s = (factor.to(h_float) for factor in (self.U, self.V, self.s))
        mapped = h_float - ((h_float @ V) * s) @ U.T
        if self.k is not None:
            mapped = mapped + self.k.to(h_float)
        return mapped.to(h.dtype)

    @property
    def linear(self) -> "ResidualMap":
        """The map without its constant."""
        return replace(self, k=None)

    @property
    def fixed_components(self) -> Float[Tensor, "n"]:
        """Components along U that the map leaves as they are; for orthonormal U and s > 0."""
        if self.k is None:
            return torch.zeros_like(self.s)
        return (self.U.T @ self.k) / self.s

    def without_constant(self, mean: Float[Tensor, "d_model"], spread: float) -> "ResidualMap":
        """Return a linear map near this one for residuals with this mean and spread.

        The constant k is multiplied by v·h, the best linear guess of 1: v = μ / (|μ|² + spread² /
        d_model), if the spread is equal in all dimensions. It is good if the mean is long.
        """
        v = mean.double() / (mean.double().pow(2).sum() + spread**2 / len(mean))
        return ResidualMap(self.U, self.V - torch.outer(v, self.fixed_components), self.s)

    @property
    def transposed(self) -> "ResidualMap":
        """The transposed linear part: h ↦ h − V·diag(s)·Uᵀh."""
        return ResidualMap(self.V, self.U, self.s)

    def after_norm(self, gain: Float[Tensor, "d_model"]) -> "ResidualMap":
        """Return the equivalent map after the norm: γ ⊙ M(γ⁻¹ ⊙ n).

        M is the linear part of this map, and n is the norm's output. Coordinates at which γ is 0
        are dropped from what M reads, because n does not show them: see `share_at_zeros`.
        """
        V = torch.where(at_zeros(gain)[:, None], 0, self.V / gain[:, None])
        return ResidualMap(gain[:, None] * self.U, V, self.s)

    def share_at_zeros(self, gain: Float[Tensor, "d_model"]) -> float:
        """Return the share of what this map reads, as |V|², at coordinates with γ = 0."""
        squares = self.V.pow(2).sum(-1)
        return float(squares[at_zeros(gain)].sum() / squares.sum())

    def before_norm(self, gain: Float[Tensor, "d_model"]) -> "ResidualMap":
        """Return a map before the norm that removes about the same from its output as this map.

        No map before the norm is exact, because the norm rescales every output. The map
        γ⁻¹ ⊙ M(γ ⊙ y) has the exact direction, but it makes the input large where γ is small. The
        norm then shrinks everything else. Damping limits this: with more damping the map changes
        its input less, but its direction is less exact. Choose the damping that minimises the
        expected error, for inputs with independent coordinates of equal variance.
        """
        V = gain[:, None] * self.V
        mean_square = gain.pow(2).mean()
        candidates = []
        for power in _DAMPING_POWERS:
            damping = float(mean_square * 10**power)
            candidates.append(self._damped_U(gain, V, damping))
        best = min(candidates, key=lambda U: self._expected_error(gain, U, V))
        return ResidualMap(best, V, self.s)

    def _damped_U(self, gain: Tensor, V: Tensor, damping: float) -> Float[Tensor, "d_model n"]:
        """Return U with the same VᵀU as this map, and γ ⊙ U close to this map's U."""
        U: Tensor = gain[:, None] * self.U / (gain.pow(2) + damping)[:, None]
        correction: Tensor = torch.linalg.pinv(V.T @ U) @ (self.V.T @ self.U)
        return U @ correction

    def _expected_error(self, gain: Tensor, U: Tensor, V: Tensor) -> float:
        """Return the squared relative error of the output's scale, plus collateral removal."""
        scale_error = (U @ V.T).pow(2).sum() / (2 * len(gain))
        collateral = ((gain[:, None] * U - self.U) @ self.V.T).pow(2).sum() / len(gain)
        return float(scale_error**2 + collateral)


@dataclass(frozen=True, eq=False)
class NormProjection:
    """Maps what a norm divides by its size, before γ multiplies it.

    Unlike `ResidualMap.after_norm` it also reads coordinates with γ = 0, from the norm's input.
    """

    map: ResidualMap
    gain: Float[Tensor, "d_model"]

    def __call__(
        self, h: Float[Tensor, "*b d_model"], normed: Float[Tensor, "*b d_model"]
    ) -> Float[Tensor, "*b d_model"]:
        """Return the norm's output with the mapped residual; h is its input."""
        h, out = (x if x.dtype == torch.float64 else x.float() for x in (h, normed))
        gain, U, V, s = (x.to(h) for x in (self.gain, self.map.U, self.map.V, self.map.s))
        scaled = gain * h
        # The norm's own factor, whatever its epsilon is.
        factor = (out * scaled).sum(-1, keepdim=True) / scaled.pow(2).sum(-1, keepdim=True)
        change = -((h @ V) * s) @ U.T
        if self.map.k is not None:
            change = change + self.map.k.to(h)
        return (out + factor * gain * change).to(normed.dtype)


def at_zeros(gain: Float[Tensor, "d_model"]) -> Bool[Tensor, "d_model"]:
    """Return where a norm's γ is 0, or so small that only rounding is left."""
    return gain.abs() <= _ZERO_GAIN * gain.abs().max()


def projection(
    directions: Sequence[Float[Tensor, "d_model"]],
    strengths: Sequence[float],
    means: Sequence[Float[Tensor, "d_model"] | None] = (),
) -> ResidualMap:
    """Return the map that removes a share of the component along each direction.

    U = V = D(DᵀD)^(−½) is the orthonormal set closest to the unit directions D (Löwdin 1950), so
    their order does not matter. With means, the map acts about them: h ↦ h − U·diag(s)·Uᵀ(h − m),
    where m has along each direction the component of its mean (None: 0). Raises EditError for
    dependent directions with different strengths, for which the result would be ambiguous.
    """
    unit_directions = [d.double() / d.double().norm() for d in directions]
    D = torch.stack(unit_directions, dim=1)
    s = torch.tensor(list(strengths), dtype=torch.float64)
    eigenvalues, E = torch.linalg.eigh(D.T @ D)
    independent = eigenvalues > _DEPENDENT * eigenvalues.max()
    if not independent.all() and s.unique().numel() > 1:
        raise EditError(
            "linearly dependent directions have different strengths: give them the same strength"
        )
    E, scale = E[:, independent], eigenvalues[independent].rsqrt()
    orthonormal = D @ (E * scale) @ E.T
    linear = ResidualMap(orthonormal, orthonormal, s)
    if all(mean is None for mean in means):
        return linear
    components = [
        0.0 if mean is None else float(unit @ mean.double())
        for unit, mean in zip(unit_directions, means, strict=True)
    ]
    m = torch.linalg.pinv(D.T) @ torch.tensor(components, dtype=torch.float64)
    return replace(linear, k=orthonormal @ (s * (orthonormal.T @ m)))


def readout_clamp(
    w: Float[Tensor, "n d_model"],
    b: Float[Tensor, "n"],
    d: Float[Tensor, "n d_model"],
    target: Float[Tensor, "n"],
) -> ResidualMap:
    """Return the map that moves h along the d until every read-out w·h + b equals its target.

    It is h ↦ h + D·C⁻¹·(target − b − Wh) with C = WD: W has the w as rows, D the d as columns.
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
    """Return the map that adds a constant."""
    no_columns = torch.zeros(len(vector), 0, dtype=torch.float64)
    return ResidualMap(no_columns, no_columns, no_columns[0], vector.double())
