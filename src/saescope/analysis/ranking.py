"""Why `contrast` and `detect` put different features first."""

from saescope.sources.catalog import Feature


def why_ranks_differ(name: str, by_tokens: Feature, by_prompts: Feature) -> str | None:
    """Say why the two differ about a set; None if they put the same feature first.

    >>> why_ranks_differ("japanese", Feature(2, 5), Feature(2, 5))
    """
    if by_tokens == by_prompts:
        return None
    return (
        f"contrast ranks by the share of tokens a feature fires on (first for {name}: "
        f"{by_tokens}), detect by the share of prompts it fires on at all ({by_prompts}), so a "
        "feature that fires once in most prompts of other sets is first in one and not in the "
        "other."
    )
