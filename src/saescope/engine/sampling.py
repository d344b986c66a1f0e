"""How the next token of one reply is chosen from its logits."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.arguments import SEED, TEMPERATURE
from saescope.errors import ArgumentError


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probability of a chosen token, and those of the likeliest tokens, best first."""

    chosen: float
    likeliest: tuple[tuple[int, float], ...] = ()


@final
class Sampler:
    """Chooses the tokens of one reply: greedily at temperature 0, else from its own random stream.

    The reply does not depend on the other rows of its batch. With `top_p` below 1, only the
    likeliest tokens whose probabilities together reach it are drawn from (Holtzman et al., 2020,
    arXiv:1904.09751).

    >>> import torch
    >>> from saescope.engine.sampling import Sampler
    >>> logits = torch.tensor([0.0, 3.0, 2.9, -1.0])
    >>> Sampler(temperature=0.0).choose(logits)
    1
    >>> {Sampler(1.0, top_p=0.5, seed=seed).choose(logits) for seed in range(20)}
    {1}
    """

    def __init__(self, temperature: float = 0.0, *, top_p: float = 1.0, seed: int = 0) -> None:
        TEMPERATURE.check("temperature", temperature)
        SEED.check("seed", seed)
        if not 0 < top_p <= 1:
            raise ArgumentError("top_p", f"must be above 0 and at most 1, got {top_p}")
        self._temperature = temperature
        self._top_p = top_p
        self._stream = torch.Generator().manual_seed(seed)

    def choose(self, logits: Float[Tensor, "vocab"]) -> int:
        """Return the next token."""
        if self._temperature == 0:
            return int(logits.argmax())
        probabilities = torch.softmax(logits.float().cpu() / self._temperature, dim=-1)
        if self._top_p < 1:
            probabilities = _nucleus(probabilities, self._top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._stream))


def _nucleus(probabilities: Float[Tensor, "vocab"], top_p: float) -> Float[Tensor, "vocab"]:
    """Return the probabilities with 0 for all tokens but the likeliest that reach `top_p`."""
    ordered, tokens = probabilities.sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    return torch.zeros_like(probabilities).index_copy(
        0, tokens, torch.where(before < top_p, ordered, 0)
    )


def log_probabilities(
    logits: Float[Tensor, "vocab"], chosen: int, n_likeliest: int
) -> TokenLogprobs:
    """Return log-probabilities in nats under the model itself, whatever the temperature is."""
    values = torch.log_softmax(logits.float(), dim=-1)
    best = values.topk(n_likeliest)
    pairs = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenLogprobs(float(values[chosen]), pairs)
