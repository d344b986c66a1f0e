"""Hashes of large files, remembered until the files change.

The key is everything that a filesystem says of a file: size, times, inode. A rewritten file whose
modification time is set back still has another change time. A file that changed moments ago is not
remembered, since a second change within the clock's resolution could not be told from the first.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saescope.errors import ResourceError
from saescope.sources.regular_files import read_json
from saescope.sources.whole_files import write_whole

CACHE = "SAESCOPE_CACHE"
"Environment variable: the folder of remembered hashes and measurements."
_SETTLED_NS = 10 * 10**9


def cache_folder() -> Path:
    """The user's cache folder of saescope; it can be deleted at any time."""
    folder = os.environ.get(CACHE)
    if folder:
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "saescope"


def remembered(path: Path, kind: str, compute: Callable[[Path], str]) -> str:
    """The hash of this kind that is known of the unchanged file, or else the computed one."""
    path = path.resolve()
    state = _state(path)
    stored = recall(_name(path))
    known = stored.get("hashes", {}) if stored.get("state") == state else {}
    if isinstance(known.get(kind), str):
        return str(known[kind])
    value = compute(path)
    if _state(path) != state:
        raise ResourceError(f"{path} changed while it was read: wait until it is complete")
    if _is_settled(path):
        remember(_name(path), {"state": state, "hashes": {**known, kind: value}})
    return value


def recall(name: str) -> dict[str, Any]:
    """What is remembered under this name; empty if nothing is, or if it is damaged."""
    try:
        stored = read_json(cache_folder() / f"{name}.json")
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def remember(name: str, values: dict[str, Any]) -> None:
    """Store values under a name, whole or not at all; without a cache folder, do nothing."""
    with contextlib.suppress(OSError):
        write_whole(cache_folder() / f"{name}.json", json.dumps(values).encode())


def _name(path: Path) -> str:
    return "files/" + hashlib.sha256(os.fsencode(path)).hexdigest()[:32]


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _is_settled(path: Path) -> bool:
    """Whether the last change is long past; elsewhere than on POSIX, change times are not known."""
    stat = path.stat()
    changed = max(stat.st_mtime_ns, stat.st_ctime_ns)
    return os.name == "posix" and time.time_ns() - changed > _SETTLED_NS
