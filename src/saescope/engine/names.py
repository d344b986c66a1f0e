"""Which tensors of a checkpoint make each parameter of a module: names and shapes only, nothing is read.

Checkpoints put something before a module's own names (`model.`, `model.language_model.`, nothing), and may hold the
experts of a mixture one by one where the module holds them in one tensor.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Size

# A module's stacked experts are (expert, rows, columns); these are the tensors whose rows follow one another in each.
_STACKED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from: one tensor of its shape, or for each expert those that lie one below the other."""

    names: tuple[tuple[str, ...], ...]
    stacked: bool = False

    @property
    def flat(self) -> list[str]:
        """All names, in order."""
        return [name for expert in self.names for name in expert]


def sources(wanted: Mapping[str, Size], stored: Collection[str], usual: str) -> dict[str, Source]:
    """The source of every wanted parameter, under the prefix that fits most of them, or `usual` if none fits any.

    Names that the checkpoint lacks are given too: what is missing is for the reader to say.
    """
    prefix = _prefix(wanted, stored, usual)
    return {name: _source(prefix + name, shape, stored) for name, shape in wanted.items()}


def _prefix(wanted: Mapping[str, Size], stored: Collection[str], usual: str) -> str:
    """What stands before the module's names; a draft head's or an image tower's layers may end alike, but fewer do."""
    first = next(iter(wanted), "")
    found = [n.removesuffix(first) for n in stored if n == first or n.endswith(f".{first}")]
    return max(
        found, key=lambda p: (sum(p + name in stored for name in wanted), -len(p)), default=usual
    )


def _source(name: str, shape: Size, stored: Collection[str]) -> Source:
    whole = Source(((name,),))
    owner, _, kind = name.rpartition(".")
    if name in stored or kind not in _STACKED or not owner.endswith(".experts"):
        return whole
    experts = tuple(
        tuple(f"{owner}.{n}.{part}.weight" for part in _STACKED[kind]) for n in range(shape[0])
    )
    return Source(experts, stacked=True) if any(part in stored for part in experts[0]) else whole
