"""What a second run of the same prompts is safe for: each use with its figure and its limit.

Rounding moves what stands at the border of the top k long before it moves a rate. So a dtype can be
safe for rates, best features and values where most tokens have another top k.
"""

from dataclasses import dataclass
from typing import Any, final

LARGEST_RATE_DIFF = 0.05
LARGEST_VALUE_DIFF = 0.05
SMALLEST_SHARE = 0.9


@final
@dataclass(frozen=True)
class SafeUse:
    """One use of a run's features, and whether two runs agree enough for it."""

    name: str
    what: str
    "The use and the measured figure, in words."

    figure: float
    limit: float
    safe: bool
    unit: str = " %"

    @property
    def words(self) -> str:
        """The use with its figure and its limit."""
        return f"{self.what}; limit {100 * self.limit:g}{self.unit})"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        return {"safe": self.safe, "figure": self.figure, "limit": self.limit}


def at_most(name: str, what: str, figure: float, limit: float, unit: str = " %") -> SafeUse:
    """A use that is safe up to a limit."""
    return SafeUse(name, what, figure, limit, figure <= limit, unit)


def at_least(name: str, what: str, figure: float, limit: float = SMALLEST_SHARE) -> SafeUse:
    """A use that is safe from a limit on."""
    return SafeUse(name, what, figure, limit, figure >= limit)


def verdict(what: str, uses: list[SafeUse]) -> str:
    """Say in one line what the second run, which differs by `what`, is safe for and what not."""
    safe = ", ".join(use.words for use in uses if use.safe)
    unsafe = ", ".join(use.words for use in uses if not use.safe)
    if not unsafe:
        return f"{what} is safe here: for {safe}"
    if not safe:
        return f"{what} is not safe here: not for {unsafe}"
    return f"{what} is safe for {safe}; it is not safe for {unsafe}"
