"""Memory and disk of this machine, and amounts as people write them. Knows no job."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from saescope.errors import ResourceError

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_AMOUNT = re.compile(r"(\d+(?:\.\d*)?(?:e\d{1,2})?)\s*([kmgt]i?)?(b?)", re.IGNORECASE)
_RATE = re.compile(r"(\d+(?:\.\d*)?)\s*([KkMmGg]i?)?([Bb]it/s|bps|B/s)")
_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def parse_bytes(text: str) -> int:
    """`8GiB`, `500MB`, `8G` or `2e9` in bytes: K, M, G, T are powers of 1000, Ki, Mi, … of 1024.

    Raises ResourceError for any other text.
    """
    match = _AMOUNT.fullmatch(text.strip())
    amount = float(match[1]) * _power(match[2]) if match else 0
    if not 1 <= amount < 2**63:
        raise ResourceError(
            f"{text!r} is not an amount of memory: write 8GiB, 500MB or 2e9 (bytes), for instance"
        )
    return int(amount)


def parse_rate(text: str) -> float:
    """`100Mbit/s`, `100Mbps` or `12MB/s` in bytes per second; raises ResourceError otherwise."""
    match = _RATE.fullmatch(text.strip())
    rate = float(match[1]) * _power(match[2]) if match else 0
    if match is None or not 1 <= rate < 2**63:
        raise ResourceError(f"{text!r} is not a rate: write 100Mbit/s or 12MB/s, for instance")
    return rate if match[3] == "B/s" else rate / 8


def _power(prefix: str | None) -> int:
    powers = _DECIMAL | _BINARY
    return powers[(prefix or "").lower()]


def show_bytes(amount: int) -> str:
    """An amount for people, in powers of 1000 as disks and the hub count: `2.15 GB`."""
    for unit, size in _UNITS:
        if amount >= 999.5 * size:
            return f"{amount / size:.0f} {unit}"
        if amount >= 0.9995 * size:
            return f"{amount / size:.3g} {unit}"
    return f"{amount} bytes"


def show_seconds(seconds: float) -> str:
    """A time for people: `40 s`, `16 min`, `2.5 h`."""
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.3g} h"


def free_disk(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    place = folder.expanduser().absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory that a new process can use without swapping, or None if unknown.

    On Linux: what is available now, within the limits of this process's control groups. Elsewhere:
    all physical memory. `root` is the folder that holds /proc and /sys.
    """
    if sys.platform != "linux":
        return _physical_memory()
    amounts = list(_group_memory(root))
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            amounts.append(int(line.split()[1]) * 1024)
    return min(amounts, default=None)


@dataclass(frozen=True)
class _MemoryController:
    """Where a control group's memory limits are, and the names of its files."""

    base: Path
    limit: str
    usage: str
    cache: str

    def free_bytes(self, group: Path) -> int | None:
        """What a group has left; its page cache can be dropped, so it counts as free."""
        limit, usage = _first_line(group / self.limit), _first_line(group / self.usage)
        if not (limit.isdigit() and usage.isdigit()):
            return None
        stat = dict(line.split(maxsplit=1) for line in _lines(group / "memory.stat"))
        return max(0, int(limit) - int(usage) + int(stat.get(self.cache, 0)))


def _group_memory(root: Path) -> Iterator[int]:
    version_2 = _MemoryController(root / "sys/fs/cgroup", "memory.max", "memory.current", "file")
    version_1 = _MemoryController(
        root / "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_cache",
    )
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        controller = version_1 if controllers else version_2
        # In a container the path is that of the host, but the own group is mounted at the top:
        # look at every parent.
        group = controller.base / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(controller.base):
                free = controller.free_bytes(folder)
                if free is not None:
                    yield free


def _first_line(path: Path) -> str:
    return next(iter(_lines(path)), "")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return _physical_memory_by_sysctl()  # Windows has no sysconf, macOS not all its names


def _physical_memory_by_sysctl() -> int | None:
    command = ["sysctl", "-n", "hw.memsize"]
    try:
        return int(subprocess.run(command, capture_output=True, check=True, timeout=5).stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def guess_device(root: Path = Path("/")) -> str:
    """The device that torch would most likely choose, without importing torch."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "mps"
    return "cuda" if (root / "dev/nvidia0").exists() else "cpu"
