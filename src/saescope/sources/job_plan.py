"""What is asked of a plan, and what it says: files, disk, memory, work, and whether that fits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from saescope.errors import ResourceError
from saescope.sources.budget import (
    JobSizes,
    Mode,
    choose_mode,
    footprint,
    footprints,
    suggest_changes,
)
from saescope.sources.files import FileEntry, Files
from saescope.sources.machine import free_disk, show_bytes

# Jobs that read residuals never need the layers above; generating does.
_MODES: tuple[Mode, ...] = ("cut", "streamed")


@dataclass(frozen=True)
class PlanRequest:
    """What is to be planned: the options of a job, a memory budget in bytes, and how many tokens if that is known.

    `layers` are numbers, "all", or None for the middle one; `device` is one that is there.
    """

    model: str
    sae: str
    layers: Sequence[int] | Literal["all"] | None = None
    k: int | None = None
    dtype: str = "auto"
    device: str = "cpu"
    batch_tokens: int = 2048
    offline: bool = False
    budget: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class NeededFile:
    """One file of the job, and the checkpoint it is of; None where only the catalog knows it."""

    repo: str
    files: Files | None
    entry: FileEntry

    def renewed(self) -> "NeededFile":
        """The same, looked at again."""
        return (
            self if self.files is None else replace(self, entry=self.files.entry(self.entry.name))
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        revision = self.files.revision if self.files else None
        entry = self.entry
        return {
            "name": entry.name,
            "bytes": entry.bytes,
            "have": entry.have,
            "repo": self.repo,
            "revision": revision,
            "sha256": entry.sha256,
            "partial_bytes": entry.partial,
        }


@dataclass(frozen=True)
class JobPlan:
    """A job's files, sizes and work, and what there is for them; `sizes` is None where offline they are not known."""

    request: PlanRequest
    layers: tuple[int, ...]
    dtype: str
    needed: tuple[NeededFile, ...]
    download_folder: Path
    disk_free: int
    budget: int | None
    sizes: JobSizes | None
    flop_per_token: float | None
    unknown: tuple[str, ...] = ()
    disk_instead: tuple[str, ...] = ()

    @property
    def missing(self) -> list[NeededFile]:
        """Files that are not here."""
        return [file for file in self.needed if not file.entry.have]

    @property
    def download_bytes(self) -> int:
        """Bytes to fetch, as far as sizes are known."""
        return sum(file.entry.missing for file in self.needed)

    @property
    def disk_bytes(self) -> int:
        """Bytes of all files, here or not."""
        return sum(file.entry.bytes or 0 for file in self.needed)

    @property
    def fits_disk(self) -> bool:
        """Whether what is missing can be written."""
        return self.download_bytes <= self.disk_free

    @property
    def mode(self) -> Mode | None:
        """The way it would be run within the budget, or else the one that takes least."""
        if self.sizes is None:
            return None
        if self.budget is None:
            return _MODES[0]
        try:
            return choose_mode(self.sizes, self.budget, _MODES)
        except ResourceError:
            sizes = self.sizes
            return min(_MODES, key=lambda mode: footprint(sizes, mode).total)

    @property
    def memory_bytes(self) -> int | None:
        """What that way holds at its peak."""
        return footprint(self.sizes, self.mode).total if self.sizes and self.mode else None

    @property
    def fits_memory(self) -> bool:
        """Whether that is within the budget, where both are known."""
        return self.memory_bytes is None or self.budget is None or self.memory_bytes <= self.budget

    @property
    def fits(self) -> bool:
        """Whether the job can be run here as asked."""
        return not self.why

    @cached_property
    def why(self) -> tuple[str, ...]:
        """What does not fit, a line each."""
        lines = []
        if not self.fits_disk:
            lines.append(
                f"disk: {show_bytes(self.download_bytes)} to fetch, {show_bytes(self.disk_free)} free at {self.download_folder}"
            )
        if not self.fits_memory:
            lines.append(
                f"memory: {show_bytes(self.memory_bytes or 0)} at least ({self.mode}), "
                f"{show_bytes(self.budget or 0)} {'allowed' if self.request.budget else 'free'}"
            )
        if self.request.offline and self.missing:
            lines.append(f"--offline: {counted(self.missing, 'file')} not in the local cache")
        return tuple(lines)

    @cached_property
    def instead(self) -> tuple[str, ...]:
        """What would fit, a line each."""
        lines: list[str] = []
        if not self.fits_disk:
            lines += self.disk_instead
        if not self.fits_memory and self.sizes is not None:
            lines += suggest_changes(self.sizes, self.budget or 0, _MODES)
        if self.request.offline and self.missing:
            lines.append(
                "fetch the files where there is a network: saescope fetch, without offline"
            )
        return tuple(lines)

    @property
    def gflop(self) -> float | None:
        """Floating-point operations of all tokens, in billions."""
        if self.flop_per_token is None or self.request.tokens is None:
            return None
        return self.flop_per_token * self.request.tokens / 1e9

    def renewed(self) -> "JobPlan":
        """The same with files and free space looked at again."""
        return replace(
            self,
            needed=tuple(f.renewed() for f in self.needed),
            disk_free=free_disk(self.download_folder),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        modes = footprints(self.sizes).items() if self.sizes else ()
        return {
            "model": self.request.model,
            "sae": self.request.sae,
            "layers": list(self.layers),
            "dtype": self.dtype,
            "device": self.request.device,
            "download_bytes": self.download_bytes,
            "disk_bytes": self.disk_bytes,
            "disk_free_bytes": self.disk_free,
            "disk": str(self.download_folder),
            "memory_bytes": self.memory_bytes,
            "memory_budget_bytes": self.budget,
            "mode": self.mode,
            "memory": {
                m: {"file_backed": f.file_backed, "anonymous": f.anonymous, "bytes": f.total}
                for m, f in modes
            },
            "fits": self.fits,
            "why": list(self.why),
            "instead": list(self.instead),
            "unknown": list(self.unknown),
            "tokens": self.request.tokens,
            "gflop_per_token": None if self.flop_per_token is None else self.flop_per_token / 1e9,
            "gflop": self.gflop,
            "files": [file.to_dict() for file in self.needed],
        }


def counted(things: Sequence[object], what: str) -> str:
    """As `2 files are`."""
    return f"{len(things)} {what}{'s are' if len(things) > 1 else ' is'}"
