"""What a profile warns of: figures that show a token, a position or a rule instead of the sets."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from saescope.store.token_norms import TokenNorms

LEADING_SHARE = 0.5
_MIN_PROMPTS = 3
APART, ALIKE = 1.5, 1.2
SINK_SHARE = 0.02


def leading_tokens(run: TokenNorms) -> list[str]:
    """Return a line per set in which half the prompts or more begin with the same token.

    The norm at position 0 then shows that token, not the set. A special token such as a BOS is no
    part of the prompts and the same in every set.
    """
    first_tokens: list[list[str]] = [[] for _ in run.sets]
    for row in np.flatnonzero((run.token_pos == 0) & run.is_text).tolist():
        first_tokens[run.set_of_token[row]].append(run.token_text[row])
    lines = []
    for name, tokens in zip(run.sets, first_tokens, strict=True):
        if not tokens:
            continue
        [(token, count)] = Counter(tokens).most_common(1)
        if count >= max(_MIN_PROMPTS, LEADING_SHARE * len(tokens)):
            # Bytes are stored as \xe5 already: escaped once is enough.
            shown = repr(token).replace(r"\\", "\\")
            lines.append(
                f"{name}: {count} of {len(tokens)} prompts begin with {shown}: its position-0 norm "
                "shows that token, not the set; vary how the prompts begin, or compare later "
                "positions"
            )
    return lines


@dataclass(frozen=True)
class Means:
    """One set's mean norms after one layer, without later sinks: with position 0 and without."""

    with_pos0: float
    later: float


def position_0_drives(layer: int, means: Mapping[str, Means]) -> list[str]:
    """Return a line if two sets' mean norms differ with position 0 and hardly without it.

    They differ by a ratio above `APART` with position 0, and below `ALIKE` over later positions.
    The line names the two that are furthest apart.
    """
    pairs = [
        (name, other)
        for name, other in permutations(means, 2)
        if _differ_by_position_0(means[name], means[other])
    ]
    if not pairs:
        return []
    name, other = max(pairs, key=lambda pair: means[pair[0]].with_pos0 / means[pair[1]].with_pos0)
    first, second = means[name], means[other]
    more = ""
    if len(pairs) > 1:
        more = f", and likewise in {len(pairs) - 1} more pairs of sets"
    return [
        f"layer {layer}: position 0 makes {name} differ from {other}: mean norms "
        f"{_compared(first.with_pos0, second.with_pos0)} with it, "
        f"{_compared(first.later, second.later)} without it{more}; "
        "compare means over later positions"
    ]


def _differ_by_position_0(first: Means, second: Means) -> bool:
    smaller, larger = sorted([first.later, second.later])
    if smaller <= 0 or second.with_pos0 <= 0:
        return False
    return first.with_pos0 > APART * second.with_pos0 and larger < ALIKE * smaller


def _compared(first: float, second: float) -> str:
    return f"{first:.4g} and {second:.4g} ({first / second:.2f}x)"


def many_sinks(
    layer: int, sets: Sequence[str], n_sinks: Sequence[int], n_later: Sequence[int]
) -> list[str]:
    """Return a line if more than `SINK_SHARE` of a layer's later positions are sinks.

    `n_later` counts each set's positions after 0, `n_sinks` those of them that are sinks. The line
    names the set with the largest share.
    """
    if sum(n_sinks) <= SINK_SHARE * sum(n_later):
        return []
    shares = {
        name: sinks / later
        for name, sinks, later in zip(sets, n_sinks, n_later, strict=True)
        if later
    }
    worst = max(shares, key=lambda name: shares[name])
    return [
        f"layer {layer}: {100 * sum(n_sinks) / sum(n_later):.1f} % of later positions are sinks "
        f"({100 * shares[worst]:.1f} % in {worst}): they are no outliers here; raise sink_ratio "
        "until few positions exceed it, or set keep_sinks=True"
    ]
