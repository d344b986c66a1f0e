"""Small files that any number of processes write: readers see one version in full."""

import glob
import hashlib
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

_ABANDONED_SECONDS = 3600.0


def write_whole(path: Path, data: bytes, staging_folder: Path | None = None) -> None:
    """Write a file by renaming a new one over it; raises OSError, and then leaves the old one.

    Without a lock: of several writers the last one counts. `staging_folder`: a folder on the same
    filesystem for the file until then, where others read every file of its own folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(Path(folder) / "new" / "file", b"text")
    ...     [path.name for path in Path(folder, "new").iterdir()]
    ['file']
    """
    folder = staging_folder or path.parent
    for place in (folder, path.parent):
        place.mkdir(parents=True, exist_ok=True)
    staging = folder / f".{path.name}.{_this_host()}-{os.getpid()}-{token_hex(4)}.partial"
    try:
        staging.write_bytes(data)
        os.replace(staging, path)
    except BaseException:
        with suppress(OSError):
            staging.unlink()
        raise
    _remove_abandoned(folder, path.name)


def _remove_abandoned(folder: Path, name: str) -> None:
    """Remove what killed processes left; on another host, what is far older than a write takes."""
    for old in folder.glob(f".{glob.escape(name)}.*-*-*.partial"):
        host, pid, _ = old.name.removeprefix(f".{name}.").split("-", 2)
        with suppress(OSError, ValueError):
            is_old = time.time() - old.stat().st_mtime > _ABANDONED_SECONDS
            if is_old or (host == _this_host() and not is_alive(int(pid))):
                old.unlink()


def _this_host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def is_alive(pid: int) -> bool:
    """Return whether this machine runs a process of this id; True if that cannot be told."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
