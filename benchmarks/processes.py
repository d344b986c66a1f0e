"""Run measured processes: their files cached or evicted first, their time and memory watched."""

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


class ProcessFailed(Exception):
    """A measured process failed, or its files or environment could not be made."""


def run_reporting(command: Sequence[str]) -> Figures:
    """Run a process that prints its figures as a last line of JSON; adds `wall_s`."""
    outside, output = _run(command, {})
    try:
        inside: Figures = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise ProcessFailed(f"{command[2]} printed no figures") from error
    return {"wall_s": outside["wall_s"], **inside}


def run_watched(command: Sequence[str], env: Mapping[str, str] | None = None) -> Figures:
    """Run any process and return its seconds and peak memory, seen from outside."""
    figures, _ = _run(command, env or {})
    return figures


def _run(command: Sequence[str], env: Mapping[str, str]) -> tuple[Figures, str]:
    environment = {**os.environ, **_QUIET, **env}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err, env=environment)
        try:
            with Memory(process.pid) as memory:
                code = process.wait()
                wall = time.perf_counter() - start
        finally:
            process.kill()
        if code:
            err.seek(0)
            raise ProcessFailed(_reason(err.read(), code))
        out.seek(0)
        return {"wall_s": wall, **memory.peak}, out.read()


def _reason(stderr: str, code: int) -> str:
    """Why a process failed, in one line."""
    if code == -9:
        return "killed: out of memory"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last_line = lines[-1] if lines else "no message"
    return f"exit {code}: {last_line}"[:300]


def saescope_executable() -> list[str]:
    """The installed `saescope` command, or its equivalent in this interpreter."""
    script = Path(sys.executable).with_name("saescope")
    if script.is_file():
        return [str(script)]
    return [sys.executable, "-c", "from saescope.surfaces.cli import main; main()"]


def prepare(folders: Iterable[Path], *, cold: bool) -> None:
    """Read every file of these folders into the page cache, or evict all of them if `cold`."""
    for folder in folders:
        for file in folder.iterdir():
            if not file.is_file():
                continue
            if cold:
                evict(file)
            else:
                _read_through(file)


def _read_through(file: Path) -> None:
    with file.open("rb") as opened:
        while opened.read(2**24):
            pass


def evict(file: Path) -> None:
    """Write a file to disk and drop it from the page cache."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
