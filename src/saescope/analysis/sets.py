"""Which prompt sets a question compares."""

from collections.abc import Mapping, Sequence

from saescope.errors import PromptError


def check_sets(
    sets: Sequence[str],
    target: str,
    against: Sequence[str] | None,
    transfer: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """The sets that `target` is compared with: `against`. Default: all others.

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
