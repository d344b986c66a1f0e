"""The minimum effect size of a feature that a headline may name: significance alone is no effect.

With many positions a feature that fires on 25 % of a set and on 3 % elsewhere has a tiny q, and
still misses three positions of four.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from saescope.arguments import Ratio, Share
from saescope.store.arrays import Bools

_ROUNDING = 1e-12
_NAMED = 3  # sets or features that a sentence names before it counts the others


@final
@dataclass(frozen=True)
class Headline:
    """What a feature must reach on held-out prompts to be the finding of a result.

    >>> import saescope as ss
    >>> ss.Headline().allows(0.25, 0.03), ss.Headline().allows(0.86, 0.08)
    (False, True)
    """

    headline_rate: Share = 0.5
    "Smallest held-out rate in its own set of a feature that a headline names."

    headline_ratio: Ratio = 5.0
    "A headline's feature fires at least so many times as often in its set as in any other."

    def allows(self, rate: float, other_rate: float) -> bool:
        """Return whether a headline may name a feature with these held-out rates."""
        return bool(self.allowed(rate, other_rate))

    def allowed(self, rates: Any, other_rates: Any) -> Bools:
        """Return which of several pairs of rates a headline may name; 0 elsewhere is no limit."""
        own = np.asarray(rates) + _ROUNDING
        return np.asarray((own >= self.headline_rate) & (own >= self.headline_ratio * other_rates))

    @property
    def words(self) -> str:
        """The minimum in words."""
        return (
            f"≥ {100 * self.headline_rate:g} % and ≥ {self.headline_ratio:g} times "
            "the rate elsewhere"
        )


def rates_in_words(rate: float, other_rate: float) -> str:
    """Two rates as `25 / 3 %`, with a decimal where whole percents would hide them.

    >>> rates_in_words(0.25, 0.03), rates_in_words(0.999, 0.008)
    ('25 / 3 %', '99.9 / 0.8 %')
    """
    return f"{_percent(rate)} / {_percent(other_rate)} %"


def _percent(share: float) -> str:
    whole = f"{100 * share:.0f}"
    hides = 0 < share < 1 and (share < 0.01 or share > 0.99)
    return f"{100 * share:.1f}" if hides else whole


def listed(items: Sequence[str]) -> str:
    """Join a few items, and count those after the third.

    >>> listed(["a", "b"]), listed(["a", "b", "c", "d", "e"])
    ('a; b', 'a; b; c; and 2 more')
    """
    shown = list(items[:_NAMED])
    if len(items) > _NAMED:
        shown.append(f"and {len(items) - _NAMED} more")
    return "; ".join(shown)
