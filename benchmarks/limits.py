"""A hard limit on the memory of a process, page cache included, by the means of this machine."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_V1_LIMIT = "memory.limit_in_bytes"
_V2_LIMIT = "memory.max"
# The shell joins the group before it becomes the command, so every page counts in the group.
_JOIN = 'echo $$ > "$0" && exec "$@"'
_ULIMIT = 'ulimit -d "$0" && exec "$@"'


@dataclass(frozen=True)
class Limit:
    """A limit's name, the command prefix that applies it, and the file that holds the peak."""

    name: str
    prefix: tuple[str, ...]
    peak_file: Path | None = None

    def peak(self) -> int | None:
        """The most bytes charged to the limit, page cache included; None if not recorded."""
        if self.peak_file is None or not self.peak_file.is_file():
            return None
        return int(self.peak_file.read_text())


@contextmanager
def hard_limit(size: int) -> Iterator[Limit]:
    """A limit of `size` bytes for commands that start with its prefix.

    Uses a memory control group; else a systemd scope; else RLIMIT_DATA, which limits private
    memory only.
    """
    group = _make_group()
    if group is None:
        yield _systemd_scope(size) or _data_limit(size)
        return
    try:
        yield _limit_group(group, size)
    finally:
        group.rmdir()


def _data_limit(size: int) -> Limit:
    reason = "private memory alone, no control group could be made"
    name = f"RLIMIT_DATA of {size / 1e9:.1f} GB ({reason})"
    return Limit(name, ("sh", "-c", _ULIMIT, str(size // 1024)))


def _make_group() -> Path | None:
    """A new memory control group within our own or at the top; None without permission."""
    for parent in _parent_groups():
        group = parent / f"saescope-bench-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if _limit_file(group) is not None and _succeeds([*_join_prefix(group), "true"]):
            return group
        group.rmdir()
    return None


def _parent_groups() -> Iterator[Path]:
    our_groups = {}
    for line in Path("/proc/self/cgroup").read_text().split():
        _number, controller, path = line.split(":", 2)
        our_groups[controller] = path.lstrip("/")
    if "memory" in our_groups:  # version 1
        yield _CGROUPS / "memory" / our_groups["memory"]
        yield _CGROUPS / "memory"
    if "" in our_groups:  # version 2
        yield _CGROUPS / our_groups[""]
        yield _CGROUPS


def _limit_file(group: Path) -> Path | None:
    for name in (_V1_LIMIT, _V2_LIMIT):
        if (group / name).is_file():
            return group / name
    return None


def _limit_group(group: Path, size: int) -> Limit:
    limit_file = _limit_file(group)
    assert limit_file is not None
    limit_file.write_text(str(size))
    if limit_file.name == _V1_LIMIT:
        version, peak_name = 1, "memory.max_usage_in_bytes"
        swap_name, swap_limit = "memory.memsw.limit_in_bytes", str(size)  # memory and swap together
    else:
        version, peak_name = 2, "memory.peak"
        swap_name, swap_limit = "memory.swap.max", "0"
    if (group / swap_name).is_file():
        (group / swap_name).write_text(swap_limit)
    name = f"memory control group (v{version}) of {size / 1e9:.1f} GB"
    return Limit(name, _join_prefix(group), group / peak_name)


def _join_prefix(group: Path) -> tuple[str, ...]:
    return ("sh", "-c", _JOIN, str(group / "cgroup.procs"))


def _systemd_scope(size: int) -> Limit | None:
    options = ("-p", f"MemoryMax={size}", "-p", "MemorySwapMax=0")
    prefix = ("systemd-run", "--scope", "--quiet", *options, "--")
    if shutil.which("systemd-run") is None or not _succeeds([*prefix, "true"]):
        return None
    return Limit(f"systemd scope of {size / 1e9:.1f} GB", prefix)


def _succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0
