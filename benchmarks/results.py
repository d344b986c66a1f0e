"""Stored measurements, one JSON line per process.

A record is appended when its process ends, so an interrupted bench continues where it stopped.
"""

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.processes import ROOT


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M}"


@dataclass(frozen=True)
class Record:
    """The figures of one process, or its error.

    `others` is the share of the cores that other processes used meanwhile.
    """

    subject: str
    task: str
    setting: str
    figures: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    others: float = 0.0
    time: str = field(default_factory=_now)


class Results:
    """A file of records. Records of other settings stay in the file and are ignored."""

    def __init__(self, file: Path, setting: str) -> None:
        self.file, self.setting = file, setting
        self.records: list[Record] = []
        self.n_ignored = 0
        for record in _read(file):
            if record.setting == setting:
                self.records.append(record)
            else:
                self.n_ignored += 1

    def add(self, record: Record) -> None:
        """Append a record to the file, then to `records`."""
        line = json.dumps(asdict(record)).encode() + b"\n"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab+") as file:
            file.seek(max(0, file.tell() - 1))
            last_byte = file.read()
            if last_byte not in (b"", b"\n"):  # a bench was killed while it wrote this line
                line = b"\n" + line
            file.write(line)
        self.records.append(record)

    def forget(self, subject: str) -> None:
        """Delete a subject's records, so that it is measured again."""
        remaining = [record for record in _read(self.file) if record.subject != subject]
        self.records = [record for record in self.records if record.subject != subject]
        text = "".join(json.dumps(asdict(record)) + "\n" for record in remaining)
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.file)

    def of(self, subject: str, task: str) -> list[Record]:
        """Successful records of a task, oldest first."""
        return [record for record in self._all_of(subject, task) if record.error is None]

    def error(self, subject: str, task: str) -> str | None:
        """The last error of a task that has no successful record."""
        records = self._all_of(subject, task)
        if not records or any(record.error is None for record in records):
            return None
        return records[-1].error

    def _all_of(self, subject: str, task: str) -> list[Record]:
        return [
            record for record in self.records if (record.subject, record.task) == (subject, task)
        ]


def values(records: list[Record], name: str) -> list[float]:
    """All values of a figure; a process that repeats a measurement contributes a list."""
    collected: list[float] = []
    for record in records:
        value = record.figures.get(name, [])
        collected += value if isinstance(value, list) else [value]
    return collected


def median_of(records: list[Record], name: str) -> float | None:
    """The median of a figure, or None if no record has it."""
    collected = values(records, name)
    return median(collected) if collected else None


def current_setting() -> str:
    """A hash of what results must share to stand in one table.

    It covers saescope's source, the torch version, the processor and the number of cores.
    """
    machine = f"{processor()} {os.cpu_count()} {metadata.version('torch')}"
    digest = hashlib.sha256(machine.encode())
    for file in sorted((ROOT / "src" / "saescope").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def processor() -> str:
    """Name of the processor."""
    match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return match[1] if match else platform.processor()


def _read(file: Path) -> Iterator[Record]:
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            yield Record(**json.loads(line))
        except (ValueError, TypeError):  # cut off when a bench was killed, or in an older format
            continue
