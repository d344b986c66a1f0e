"""Kullback-Leibler divergence of next-token distributions, in nats."""

from jaxtyping import Bool, Float
from torch import Tensor


def kl_divergence(
    first: Float[Tensor, "*b vocab"], second: Float[Tensor, "*b vocab"]
) -> Float[Tensor, "*b"]:
    """KL(first ‖ second) per token, from log probabilities; rounding cannot make it negative."""
    divergence: Tensor = (first.exp() * (first - second)).sum(-1)
    return divergence.clamp(min=0)


def top1_flips(
    first: Float[Tensor, "*b vocab"], second: Float[Tensor, "*b vocab"]
) -> Bool[Tensor, "*b"]:
    """Whether the likeliest next token differs, per token."""
    return first.argmax(-1) != second.argmax(-1)
