"""A job's plan: its files, disk, memory and work, and whether that fits this machine."""

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

# A job that only reads residuals needs no layer above the last requested one.
_MODES: tuple[Mode, ...] = ("cut", "streamed")


@dataclass(frozen=True)
class JobOptions:
    """The options of a job that decide what it needs.

    `layers` are numbers, "all", or None for the middle one. `budget` is memory in bytes. `tokens`
    and `longest` are the tokens of all prompts and of the longest one, if known.
    """

    model: str
    sae: str
    layers: Sequence[int] | Literal["all"] | None = None
    k: int | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "cpu"
    batch_tokens: int = 2048
    offline: bool = False
    budget: int | None = None
    tokens: int | None = None
    longest: int | None = None


@dataclass(frozen=True)
class NeededFile:
    """One file of the job; `files` is None if only the catalog knows its checkpoint."""

    repo: str
    files: Files | None
    entry: FileEntry

    def refreshed(self) -> "NeededFile":
        """The same file, looked up again."""
        if self.files is None:
            return self
        return replace(self, entry=self.files.entry(self.entry.name))

    def to_dict(self) -> dict[str, Any]:
        """The file as JSON values."""
        return {
            "name": self.entry.name,
            "bytes": self.entry.bytes,
            "have": self.entry.have,
            "repo": self.repo,
            "revision": self.files.revision if self.files else None,
            "sha256": self.entry.sha256,
            "partial_bytes": self.entry.partial,
        }


@dataclass(frozen=True)
class JobPlan:
    """A job's files, sizes and work, and what this machine has for them.

    `sizes` and `flop_per_token` are None if some files are unknown, which happens offline.
    `unknown` says so in sentences. `disk_suggestions` are the changes that fit the disk.
    """

    options: JobOptions
    layers: tuple[int, ...]
    dtype: str
    needed: tuple[NeededFile, ...]
    download_folder: Path
    disk_free: int
    budget: int | None
    sizes: JobSizes | None
    flop_per_token: float | None
    unknown: tuple[str, ...] = ()
    disk_suggestions: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether this machine can run the job with these options."""
        return not self.why

    @cached_property
    def why(self) -> tuple[str, ...]:
        """What does not fit, one line each."""
        lines = []
        if not self.fits_disk:
            lines.append(
                f"disk: {show_bytes(self.download_bytes)} to fetch, "
                f"{show_bytes(self.disk_free)} free at {self.download_folder}"
            )
        if not self.fits_memory:
            origin = "allowed" if self.options.budget else "free"
            lines.append(
                f"memory: {show_bytes(self.memory_bytes or 0)} at least ({self.mode}), "
                f"{show_bytes(self.budget or 0)} {origin}"
            )
        if self.options.offline and self.missing:
            lines.append(f"offline: {not_cached(self.missing, 'file')}")
        return tuple(lines)

    @cached_property
    def instead(self) -> tuple[str, ...]:
        """Changes that make the job fit, one line each."""
        lines: list[str] = []
        if not self.fits_disk:
            lines += self.disk_suggestions
        if not self.fits_memory and self.sizes is not None:
            lines += suggest_changes(self.sizes, self.budget or 0, _MODES)
        if self.options.offline and self.missing:
            lines.append(
                "run saescope fetch with the same options where there is a network, "
                "without offline=True"
            )
        return tuple(lines)

    @property
    def missing(self) -> list[NeededFile]:
        """Files that are not on this machine."""
        return [file for file in self.needed if not file.entry.have]

    @property
    def download_bytes(self) -> int:
        """Bytes to fetch, of files whose size is known."""
        return sum(file.entry.missing for file in self.needed)

    @property
    def disk_bytes(self) -> int:
        """Bytes of all files of known size, fetched or not."""
        return sum(file.entry.bytes or 0 for file in self.needed)

    @property
    def fits_disk(self) -> bool:
        """Whether the disk can take what is missing."""
        return self.download_bytes <= self.disk_free

    @property
    def mode(self) -> Mode | None:
        """The way to run the job within the budget, or the one with the least memory."""
        sizes = self.sizes
        if sizes is None:
            return None
        if self.budget is None:
            return _MODES[0]
        try:
            return choose_mode(sizes, self.budget, _MODES)
        except ResourceError:
            return min(_MODES, key=lambda mode: footprint(sizes, mode).total)

    @property
    def memory_bytes(self) -> int | None:
        """Peak memory of that way, if known."""
        if self.sizes is None or self.mode is None:
            return None
        return footprint(self.sizes, self.mode).total

    @property
    def fits_memory(self) -> bool:
        """Whether peak memory is within the budget, or one of them is unknown."""
        if self.memory_bytes is None or self.budget is None:
            return True
        return self.memory_bytes <= self.budget

    @property
    def gflop(self) -> float | None:
        """Floating-point operations for all tokens, in billions, if known."""
        if self.flop_per_token is None or self.options.tokens is None:
            return None
        return self.flop_per_token * self.options.tokens / 1e9

    def refreshed(self) -> "JobPlan":
        """The same plan, with files and free space looked up again."""
        needed = tuple(file.refreshed() for file in self.needed)
        return replace(self, needed=needed, disk_free=free_disk(self.download_folder))

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        gflop_per_token = None
        if self.flop_per_token is not None:
            gflop_per_token = self.flop_per_token / 1e9
        return {
            "model": self.options.model,
            "sae": self.options.sae,
            "layers": list(self.layers),
            "dtype": self.dtype,
            "device": self.options.device,
            "download_bytes": self.download_bytes,
            "disk_bytes": self.disk_bytes,
            "disk_free_bytes": self.disk_free,
            "disk": str(self.download_folder),
            "memory_bytes": self.memory_bytes,
            "memory_budget_bytes": self.budget,
            "mode": self.mode,
            "memory": self._memory_by_mode(),
            "fits": self.fits,
            "why": list(self.why),
            "instead": list(self.instead),
            "unknown": list(self.unknown),
            "tokens": self.options.tokens,
            "gflop_per_token": gflop_per_token,
            "gflop": self.gflop,
            "files": [file.to_dict() for file in self.needed],
        }

    def _memory_by_mode(self) -> dict[str, dict[str, int]]:
        if self.sizes is None:
            return {}
        memory: dict[str, dict[str, int]] = {}
        for mode, peak in footprints(self.sizes).items():
            memory[mode] = {
                "file_backed": peak.file_backed,
                "anonymous": peak.anonymous,
                "bytes": peak.total,
            }
        return memory


def not_cached(items: Sequence[object], noun: str) -> str:
    """`2 files are not in the local cache`."""
    if len(items) == 1:
        return f"1 {noun} is not in the local cache"
    return f"{len(items)} {noun}s are not in the local cache"
