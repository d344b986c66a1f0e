"""What this machine has, memory and disk, and amounts as people write them. Does not know what a job needs."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from saescope.errors import ResourceError

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_AMOUNT = re.compile(r"(\d+(?:\.\d*)?(?:e\d{1,2})?)\s*([kmgt]i?)?(b?)", re.IGNORECASE)
_RATE = re.compile(r"(\d+(?:\.\d*)?)\s*([KkMmGg]i?)?([Bb]it/s|bps|B/s)")


def parse_bytes(text: str) -> int:
    """`8GiB`, `500MB`, `8G` or `2e9` in bytes: K, M, G, T are powers of 1000, Ki, Mi, Gi, Ti of 1024.

    Raises ResourceError for anything else.
    """
    match = _AMOUNT.fullmatch(text.strip())
    amount = float(match[1]) * _power(match[2]) if match else 0
    if not 1 <= amount < 2**63:
        raise ResourceError(
            f"{text!r} is no amount of memory: give for instance 8GiB, 500MB or 2e9 (bytes)"
        )
    return int(amount)


def parse_rate(text: str) -> float:
    """`100Mbit/s`, `100Mbps` or `12MB/s` in bytes a second; raises ResourceError for anything else."""
    match = _RATE.fullmatch(text.strip())
    rate = float(match[1]) * _power(match[2]) if match else 0
    if not match or not 1 <= rate < 2**63:
        raise ResourceError(f"{text!r} is no rate: give for instance 100Mbit/s or 12MB/s")
    return rate if match[3] == "B/s" else rate / 8


def _power(prefix: str | None) -> int:
    return (_DECIMAL | _BINARY)[(prefix or "").lower()]


def show_bytes(amount: int) -> str:
    """An amount as a person reads it, in powers of 1000 as disks and the hub count: `2.15 GB`."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if amount >= 0.9995 * size:
            return (
                f"{amount / size:.3g} {unit}"
                if amount < 999.5 * size
                else f"{amount / size:.0f} {unit}"
            )
    return f"{amount} bytes"


def show_seconds(seconds: float) -> str:
    """A time as a person reads it: `40 s`, `16 min`, `2.5 h`."""
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.3g} h"


def free_disk(folder: Path) -> int:
    """Bytes that can still be written at this place, which need not exist yet."""
    place = folder.expanduser().absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory that a new process can have without swapping; None where the system does not say.

    On Linux what is available now, within the limits of the control groups this process is in; elsewhere all there is.
    `root` is where /proc and /sys are looked for.
    """
    if sys.platform != "linux":
        return _physical_memory()
    lines = (line.split() for line in _lines(root / "proc/meminfo"))
    available = [int(words[1]) * 1024 for words in lines if words and words[0] == "MemAvailable:"]
    return min([*available, *_group_room(root)], default=None)


def _group_room(root: Path) -> list[int]:
    """What each limiting control group has left; its page cache can be dropped, so it counts as left."""
    room = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
        else:
            continue
        # Within a container the path is that of the host, but its own group is mounted at the top.
        parts = Path(group.lstrip("/")).parts
        for depth in range(len(parts) + 1):
            room += _room(base.joinpath(*parts[:depth]), *names)
    return room


def _room(folder: Path, limit_name: str, used_name: str, cache_name: str) -> list[int]:
    limit, used = (next(iter(_lines(folder / name)), "") for name in (limit_name, used_name))
    if not (limit.isdigit() and used.isdigit()):
        return []
    stat = dict(line.split(maxsplit=1) for line in _lines(folder / "memory.stat"))
    return [max(0, int(limit) - int(used) + int(stat.get(cache_name, 0)))]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (
        AttributeError,
        ValueError,
        OSError,
    ):  # no sysconf on Windows, not every name everywhere
        pass
    try:
        return int(
            subprocess.run(
                ["sysctl", "-n", "hw.memsize"], capture_output=True, check=True, timeout=5
            ).stdout
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def guess_device(root: Path = Path("/")) -> str:
    """The device torch would most likely choose, told without importing it."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "mps"
    return "cuda" if (root / "dev/nvidia0").exists() else "cpu"
