"""Processes that are measured: started from files in a known state, watched, and their last line read."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory import Memory

ROOT = Path(__file__).parent.parent
Figures = dict[str, Any]
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


class Failed(Exception):
    """A process that is measured did not do its work: what it said last."""


def printed(command: Sequence[str]) -> Figures:
    """The figures that a process of ours prints as its last line, and `wall_s`."""
    figures, output = _watched(command, {})
    try:
        told: Figures = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise Failed(f"{command[2]} printed no figures") from error
    return {"wall_s": figures["wall_s"], **told}


def watched(command: Sequence[str], env: Mapping[str, str] | None = None) -> Figures:
    """Seconds and peak memory of any process, seen from outside."""
    return _watched(command, env or {})[0]


def _watched(command: Sequence[str], env: Mapping[str, str]) -> tuple[Figures, str]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=err, env={**os.environ, **_QUIET, **env}
        )
        try:
            with Memory(process.pid) as memory:
                code = process.wait()
                wall = time.perf_counter() - start
        finally:
            process.kill()
        if code:
            err.seek(0)
            raise Failed(_reason(err.read(), code))
        out.seek(0)
        return {"wall_s": wall, **memory.peak}, out.read()


def _reason(text: str, code: int) -> str:
    """The last thing a failed process said, in one line."""
    if code == -9:
        return "killed: out of memory"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"exit {code}: {lines[-1] if lines else 'it said nothing'}"[:300]


def saescope() -> list[str]:
    """The command as its user types it."""
    script = Path(sys.executable).with_name("saescope")
    if script.is_file():
        return [str(script)]
    return [sys.executable, "-c", "from saescope.surfaces.cli import main; main()"]


def prepare(folders: Iterable[Path], *, cold: bool) -> None:
    """Have every file of these folders in the page cache, or none."""
    for file in (file for folder in folders for file in folder.iterdir() if file.is_file()):
        evict(file) if cold else _warm(file)


def _warm(file: Path) -> None:
    with file.open("rb") as opened:
        while opened.read(2**24):
            pass


def evict(file: Path) -> None:
    """Drop a file from the page cache."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
