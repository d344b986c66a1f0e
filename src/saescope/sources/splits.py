"""Which prompts are for discovery, and which are held out."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

from saescope.sources.prompts import Prompt, Split

DISCOVERY_SHARE = 0.6
Item = TypeVar("Item")


def split_prompts(
    prompts: Sequence[Prompt], share: float = DISCOVERY_SHARE, seed: int = 0
) -> list[Split]:
    """Assign each prompt to discovery or holdout: by its `split` if set, otherwise by hash.

    About `share` of every set goes to discovery. The hash keeps the prompts of a pair together,
    so that translations cannot leak between the two.
    """
    discovery = _discovery_keys(prompts, share, seed)
    subsets: list[Split] = []
    for prompt in prompts:
        if prompt.split is not None:
            subsets.append(prompt.split)
        elif split_key(prompt) in discovery:
            subsets.append("discovery")
        else:
            subsets.append("holdout")
    return subsets


def split_key(prompt: Prompt) -> str:
    """Return the grouping key: the hash never separates prompts with the same key."""
    if prompt.pair is not None:
        return f"pair\0{prompt.pair}"
    return f"id\0{prompt.set}\0{prompt.id}"


def _discovery_keys(prompts: Sequence[Prompt], share: float, seed: int) -> set[str]:
    sets_of_key: defaultdict[str, set[str]] = defaultdict(set)
    for prompt in prompts:
        sets_of_key[split_key(prompt)].add(prompt.set)
    # Split keys separately for each combination of sets, so that every set gets `share` of its
    # keys, up to the rounding of each combination to whole keys.
    groups: defaultdict[frozenset[str], list[str]] = defaultdict(list)
    for key, names in sets_of_key.items():
        groups[frozenset(names)].append(key)

    def digest(key: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{key}".encode()).digest()

    discovery: set[str] = set()
    for keys in groups.values():
        keys.sort(key=digest)
        discovery.update(keys[: round(share * len(keys))])
    return discovery


def spread(items: Sequence[Item], n: int) -> list[Item]:
    """Return n of the items at even distances, or all if there are fewer."""
    if len(items) <= n:
        return list(items)
    return [items[place * len(items) // n] for place in range(n)]
