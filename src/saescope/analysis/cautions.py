"""What a profile warns of: figures that show a token, a position or a rule instead of the sets."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from saescope.store.runs import Run

LEADING_SHARE = 0.5
_LEAST_PROMPTS = 3
APART, ALIKE = 1.5, 1.2
SINK_SHARE = 0.02


@dataclass(frozen=True)
class Means:
    """One set's mean norms after one layer, sinks after position 0 left out: with position 0, and without it."""

    with_pos0: float
    later: float


def leading_tokens(run: Run) -> list[str]:
    """A line for every set of which half the prompts or more begin with the same token.

    Position 0's norm then shows that token, not the set.
    """
    firsts: list[list[str]] = [[] for _ in run.sets]
    for row in (run.token_pos == 0).nonzero()[0]:
        firsts[run.set_of_prompt[run.token_prompt[row]]].append(run.token_text[row])
    lines = []
    for name, tokens in zip(run.sets, firsts, strict=True):
        (token, count), *_ = Counter(tokens).most_common(1)
        if count >= _LEAST_PROMPTS and count >= LEADING_SHARE * len(tokens):
            shown = repr(token).replace(
                r"\\", "\\"
            )  # a byte is stored as \xe5: once escaped is enough
            lines.append(
                f"{name}: {count} of {len(tokens)} prompts begin with {shown}: its position-0 norm shows that token, "
                "not the set; vary how the prompts begin, or compare later positions"
            )
    return lines


def position_0_drives(layer: int, means: Mapping[str, Means]) -> list[str]:
    """A line where two sets' mean norms differ with position 0 and hardly without it, naming the two furthest apart.

    They differ by a ratio over `APART` with position 0, and by one under `ALIKE` over later positions.
    """
    pairs = [
        (one, other)
        for (one, a), (other, b) in permutations(means.items(), 2)
        if min(a.later, b.later, b.with_pos0) > 0
        and a.with_pos0 > APART * b.with_pos0
        and max(a.later, b.later) < ALIKE * min(a.later, b.later)
    ]
    if not pairs:
        return []
    one, other = max(pairs, key=lambda pair: means[pair[0]].with_pos0 / means[pair[1]].with_pos0)
    a, b = means[one], means[other]
    more = f", and likewise in {len(pairs) - 1} more pairs of sets" if len(pairs) > 1 else ""
    return [
        f"layer {layer}: position 0 makes {one} differ from {other}: mean norms {_against(a.with_pos0, b.with_pos0)} "
        f"with it, {_against(a.later, b.later)} without it{more}; compare means over later positions"
    ]


def many_sinks(
    layer: int, sets: Sequence[str], sinks: Sequence[int], later: Sequence[int]
) -> list[str]:
    """A line where more than `SINK_SHARE` of a layer's later positions are sinks, naming the set that has most.

    `later` counts each set's positions after 0, and `sinks` those of them that are one.
    """
    if sum(sinks) <= SINK_SHARE * sum(later):
        return []
    share, worst = max(
        ((found / n, name) for name, found, n in zip(sets, sinks, later, strict=True) if n),
        key=lambda one: one[0],
    )
    return [
        f"layer {layer}: {100 * sum(sinks) / sum(later):.1f} % of later positions are sinks ({100 * share:.1f} % in "
        f"{worst}): they are no outliers here; set --sink-ratio so that few positions are over it, or --keep-sinks"
    ]


def _against(one: float, other: float) -> str:
    return f"{one:.4g} and {other:.4g} ({one / other:.2f}x)"
