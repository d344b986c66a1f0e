"""What a feature's direction does to the logits, as an export shows it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saescope.control.exports.firings import Histogram


@dataclass(frozen=True)
class TokenEffect:
    """By how much a direction of length 1 moves the logit of one token."""

    token: str
    value: float


@dataclass(frozen=True)
class LogitEffect:
    """The tokens that a feature raises and lowers most, and a histogram over the vocabulary."""

    raised: Sequence[TokenEffect]
    lowered: Sequence[TokenEffect]
    histogram: Histogram


# Returns the effect of each of some features of a layer.
Lens = Callable[[int, Sequence[int]], Sequence[LogitEffect]]
