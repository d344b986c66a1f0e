"""A hard limit on all the memory of a process, page cache included, by what this machine offers."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
# The shell joins the group before it becomes the command, so that no page of it is counted elsewhere.
_JOIN = 'echo $$ > "$0" && exec "$@"'
_ULIMIT = 'ulimit -d "$0" && exec "$@"'


@dataclass(frozen=True)
class Limit:
    """How commands are put under the limit, in words, and the file that tells the peak if there is one."""

    name: str
    prefix: tuple[str, ...]
    peak_file: Path | None = None

    def peak(self) -> int | None:
        """The most that was charged, in bytes, page cache included."""
        return (
            int(self.peak_file.read_text()) if self.peak_file and self.peak_file.is_file() else None
        )


@contextmanager
def hard_limit(size: int) -> Iterator[Limit]:
    """A limit of so many bytes for commands begun with its prefix: a control group, systemd's, or of data alone."""
    group = _make_group()
    if group is not None:
        try:
            yield _limited_group(group, size)
        finally:
            group.rmdir()
    elif (scope := _systemd(size)) is not None:
        yield scope
    else:
        name = f"RLIMIT_DATA of {size / 1e9:.1f} GB (private memory alone, no control group could be made)"
        yield Limit(name, ("sh", "-c", _ULIMIT, str(size // 1024)))


def _make_group() -> Path | None:
    """A new memory control group beside our own, or below it; none where they may not be made."""
    for parent in _parents():
        group = parent / f"saescope-bench-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if _limit_file(group) is not None and not _fails(
            ["sh", "-c", _JOIN, str(group / "cgroup.procs"), "true"]
        ):
            return group
        group.rmdir()
    return None


def _parents() -> Iterator[Path]:
    own = {
        kind: path
        for _, kind, path in (
            line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().split()
        )
    }
    if "memory" in own:
        yield _GROUPS / "memory" / own["memory"].lstrip("/")
        yield _GROUPS / "memory"
    if "" in own:
        yield _GROUPS / own[""].lstrip("/")
        yield _GROUPS


def _limit_file(group: Path) -> Path | None:
    return next(
        (p for p in (group / "memory.limit_in_bytes", group / "memory.max") if p.is_file()), None
    )


def _limited_group(group: Path, size: int) -> Limit:
    file = _limit_file(group)
    assert file is not None
    file.write_text(str(size))
    first = file.name == "memory.limit_in_bytes"
    for swap in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
        if (group / swap).is_file():
            (group / swap).write_text(str(size) if first else "0")
    peak = group / ("memory.max_usage_in_bytes" if first else "memory.peak")
    name = f"memory control group (v{1 if first else 2}) of {size / 1e9:.1f} GB"
    return Limit(name, ("sh", "-c", _JOIN, str(group / "cgroup.procs")), peak)


def _systemd(size: int) -> Limit | None:
    command = (
        "systemd-run",
        "--scope",
        "--quiet",
        "-p",
        f"MemoryMax={size}",
        "-p",
        "MemorySwapMax=0",
        "--",
    )
    if shutil.which(command[0]) is None or _fails([*command, "true"]):
        return None
    return Limit(f"systemd scope of {size / 1e9:.1f} GB", command)


def _fails(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True).returncode != 0
