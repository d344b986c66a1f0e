"""Which tensors of a checkpoint fill each parameter of a module, by names and shapes alone.

Checkpoints put a prefix before a module's own names (`model.`, `model.language_model.`, nothing),
and may hold a mixture's experts one by one while the module holds them in one tensor.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Size

# Stacked experts are (expert, rows, columns), with the rows of these tensors one after another.
_STACKED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from: one tensor, or for each expert those that are stacked."""

    names: tuple[tuple[str, ...], ...]
    stacked: bool = False

    @property
    def flat(self) -> list[str]:
        """All names, in order."""
        return [name for expert in self.names for name in expert]


def sources(shapes: Mapping[str, Size], stored: Collection[str], usual: str) -> dict[str, Source]:
    """The source of every parameter, under the prefix that fits most of them, else `usual`.

    Names that the checkpoint lacks are included: the caller reports what is missing.
    """
    prefix = _prefix(shapes, stored, usual)
    return {name: _source(prefix + name, shape, stored) for name, shape in shapes.items()}


def _prefix(shapes: Mapping[str, Size], stored: Collection[str], usual: str) -> str:
    """What stands before the module's names.

    Layers of a draft head or an image tower may have the same endings, but fewer of them fit.
    """
    first = next(iter(shapes), "")
    same_ending = [name for name in stored if name == first or name.endswith(f".{first}")]
    candidates = [name.removesuffix(first) for name in same_ending]

    def fit(prefix: str) -> tuple[int, int]:
        return sum(prefix + name in stored for name in shapes), -len(prefix)

    return max(candidates, key=fit, default=usual)


def _source(name: str, shape: Size, stored: Collection[str]) -> Source:
    whole = Source(((name,),))
    owner, _, kind = name.rpartition(".")
    if name in stored or kind not in _STACKED or not owner.endswith(".experts"):
        return whole
    experts = []
    for n in range(shape[0]):
        experts.append(tuple(f"{owner}.{n}.{part}.weight" for part in _STACKED[kind]))
    if not any(name in stored for name in experts[0]):
        return whole
    return Source(tuple(experts), stacked=True)
