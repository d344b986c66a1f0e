"""Which prompt sets a question compares, and which prompts are for discovery."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from saescope.errors import PromptError
from saescope.sources.splits import split_key, split_prompts
from saescope.store.arrays import Bools, Ints
from saescope.store.runs import Run


@dataclass(frozen=True)
class Comparison:
    """A target set of a run and the sets `against` it, split into discovery and held-out prompts.

    Arrays are (prompts,), over all prompts of the run.
    """

    run: Run
    target: str
    against: list[str]
    seed: int

    @cached_property
    def split(self) -> list[str]:
        """`discovery` or `holdout`, per prompt."""
        return list(split_prompts(self.run.prompts, seed=self.seed))

    @cached_property
    def is_discovery(self) -> Bools:
        """Whether each prompt is for discovery."""
        return np.array([part == "discovery" for part in self.split])

    @cached_property
    def is_target(self) -> Bools:
        """Whether each prompt is of the target set."""
        return prompts_of(self.run, [self.target])

    @cached_property
    def is_other(self) -> Bools:
        """Whether each prompt is of a set against the target."""
        return prompts_of(self.run, self.against)

    @cached_property
    def pair_numbers(self) -> Ints:
        """Number of each prompt's pair: prompts with one number belong together."""
        numbers: dict[str, int] = {}
        keys = map(split_key, self.run.prompts)
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def prompts_of(run: Run, sets: Sequence[str]) -> Bools:
    """Return whether each prompt is in one of these sets, (prompts,)."""
    names = set(sets)
    is_included = np.array([name in names for name in run.sets])
    return np.asarray(is_included[run.set_of_prompt])


def check_sets(
    sets: Sequence[str],
    target: str,
    against: Sequence[str] | None,
    transfer: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Return the sets to compare `target` with: `against`. Default: all others.

    Raises PromptError for a set that is not in the run, or if there is no other set.
    """
    others = list(against) if against is not None else [name for name in sets if name != target]
    requested = [target, *others]
    for name, negatives in (transfer or {}).items():
        requested += [name, *negatives]
    for name in requested:
        if name not in sets:
            raise PromptError(f"there is no set {name!r}: the sets are {', '.join(sets)}")
    if not others or target in others:
        raise PromptError(
            f"there is no other set to compare {target!r} with: the sets are {', '.join(sets)}"
        )
    return others


def similar_comparisons(
    sets: Sequence[str], target: str, against: Sequence[str]
) -> dict[str, list[str]]:
    """Return positive sets with their negative sets, to try a detector of `target` on.

    Sets named alike if there are any: `x_en` against `y_en` finds `x_ja` against `y_ja`. Otherwise
    every other set against the sets `against`.
    """
    if len(against) == 1:
        named_alike = _named_alike(sets, target, against[0])
        if named_alike:
            return named_alike
    comparisons = {}
    for name in sets:
        negatives = [other for other in against if other != name]
        if name != target and negatives:
            comparisons[name] = negatives
    return comparisons


def _named_alike(sets: Sequence[str], target: str, other: str) -> dict[str, list[str]]:
    ending = _common_ending(target, other)
    if not ending:
        return {}
    prefix, other_prefix = target.removesuffix(ending), other.removesuffix(ending)
    comparisons = {}
    for name in sets:
        negative = other_prefix + name[len(prefix) :]
        if name != target and name.startswith(prefix) and negative in sets:
            comparisons[name] = [negative]
    return comparisons


def _common_ending(first: str, second: str) -> str:
    """Return the longest ending of both, empty if one is an ending of the other."""
    shortest = min(len(first), len(second))
    for n in range(shortest):
        if first[-n - 1] != second[-n - 1]:
            return first[len(first) - n :]
    return ""
