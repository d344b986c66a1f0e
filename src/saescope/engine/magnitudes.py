"""How large residuals are, and how much of each its largest coordinate holds."""

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.errors import SourceError
from saescope.store.masking import MASSIVE_PEAK, sink_limits

_TINY = 1e-30


def finite_magnitudes(
    resid: Float[Tensor, "n d_model"], layer: int
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Return norms and peaks of residuals; raises SourceError if one is not finite."""
    norms = resid.norm(dim=-1)
    if not torch.isfinite(norms).all():
        raise SourceError(
            f"the residual after layer {layer} is not finite: "
            "the weights are damaged, or overflow in this dtype"
        )
    return norms, peaks_of(resid, norms)


def peaks_of(resid: Float[Tensor, "*n d_model"], norms: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return the share of each squared norm that the residual's largest coordinate holds.

    >>> import torch
    >>> resid = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    >>> peaks_of(resid, resid.norm(dim=-1))
    tensor([0.6400, 0.0000])
    """
    largest = torch.linalg.vector_norm(resid, ord=torch.inf, dim=-1)
    peaks: Tensor = (largest / norms.clamp(min=_TINY)).square().clamp(max=1)
    return peaks


def sink_sizes(
    resid: Float[Tensor, "*n d_model"], norms: Float[Tensor, "*n"]
) -> Float[Tensor, "*n"]:
    """Return sizes of which sinks exceed `SINK_RATIO` times the median norm.

    These are the norms. Where one coordinate dominates, they are larger by what `sink_limits` asks
    less of such residuals.
    """
    limits = sink_limits()
    is_massive = peaks_of(resid, norms) > MASSIVE_PEAK
    return torch.where(is_massive, norms * (limits.norm / limits.massive), norms)
