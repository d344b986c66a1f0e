"""The result of `diff`: every tensor that differs between two checkpoints, and a verdict."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from saescope.table import Table

Status = Literal["same", "changed", "reshaped", "only in A", "only in B"]
_MOSTLY = 0.9  # share of a change above which the verdict counts it as along the directions


@dataclass(frozen=True)
class TensorChange:
    """One tensor's change Δ = B − A. Shares are between 0 and 1, None if they do not apply."""

    name: str
    status: Status
    shape: tuple[int, ...]
    dtype: str

    relative: float | None = None
    "|Δ| / |A| in the Frobenius norm."

    largest: float | None = None
    "The largest absolute value of Δ."

    rank1: float | None = None
    "Share of |Δ|² in its strongest singular direction, a lower bound from power iteration."

    written: float | None = None
    "Share of |Δ|² whose outputs lie along the given directions, past the norm that follows."

    read: float | None = None
    "Share of |Δ|² whose inputs lie along the given directions, past the norm before."

    note: str = ""

    @property
    def layer(self) -> int | None:
        """The block it belongs to, if its name has a number."""
        numbers = (int(part) for part in self.name.split(".") if part.isdecimal())
        return next(numbers, None)


@final
@dataclass(frozen=True, repr=False)
class Diff(Table):
    """What differs between checkpoints A and B: a row per tensor, in the order of A's files."""

    shown = "name status layer relative largest rank1 written read"

    a: str
    b: str
    tensors: list[TensorChange]
    same: int
    notes: list[str]

    @property
    def changed(self) -> list[TensorChange]:
        """Tensors that both have and whose values differ."""
        return [tensor for tensor in self.tensors if tensor.status == "changed"]

    @property
    def verdict(self) -> str:
        """What the changes look like, in a sentence."""
        changed = self.changed
        if not self.tensors:
            return "The weights are the same."
        if not changed:
            return "No tensor that both have differs."
        clauses = [f"{len(changed)} of {len(changed) + self.same} tensors differ"]
        if any(tensor.written is not None or tensor.read is not None for tensor in changed):
            clauses += _clauses_on_directions(changed)
        return ", ".join(clauses) + "."

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-compatible dict that `saescope diff --json` prints."""
        counts = Counter(tensor.status for tensor in self.tensors)
        return {
            "a": self.a,
            "b": self.b,
            "same": self.same,
            "changed": counts["changed"],
            "reshaped": counts["reshaped"],
            "only_in_a": counts["only in A"],
            "only_in_b": counts["only in B"],
            "verdict": self.verdict,
            "notes": self.notes,
            "tensors": self.rows(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row per tensor that is not the same in both."""
        return [
            {**vars(tensor), "shape": list(tensor.shape), "layer": tensor.layer}
            for tensor in self.tensors
        ]


def _clauses_on_directions(changed: Sequence[TensorChange]) -> list[str]:
    writers = [tensor for tensor in changed if (tensor.written or 0) > _MOSTLY]
    readers = [tensor for tensor in changed if (tensor.read or 0) > _MOSTLY]
    clauses = []
    if writers:
        clauses.append(f"{len(writers)} in what they write along the direction{_layers(writers)}")
    if readers:
        clauses.append(f"{len(readers)} in what they read of it{_layers(readers)}")
    return clauses or ["none mostly along the direction"]


def _layers(tensors: Sequence[TensorChange]) -> str:
    """The layers of some tensors in brackets, as (layers 0-3)."""
    layers = sorted({tensor.layer for tensor in tensors if tensor.layer is not None})
    if not layers:
        return ""
    if len(layers) == 1:
        return f" (layer {layers[0]})"
    return f" (layers {layers[0]}-{layers[-1]})"
