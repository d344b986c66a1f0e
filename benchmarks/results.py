"""What was measured, a line a process: appended at once, so that an interrupted bench goes on where it stopped."""

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


@dataclass(frozen=True)
class Record:
    """One measured process of a task, or why it has no figures; `others` is the share of the cores others used."""

    subject: str
    task: str
    setting: str
    figures: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    others: float = 0.0
    time: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M}")


class Results:
    """A file of records; those of another setting are kept in it and left out of everything."""

    def __init__(self, file: Path, setting: str) -> None:
        self.file, self.setting = file, setting
        self.records: list[Record] = []
        self.others = 0
        for record in _read(file):
            if record.setting == setting:
                self.records.append(record)
            else:
                self.others += 1

    def add(self, record: Record) -> None:
        """Keep a record, on disk first."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab+") as file:
            file.seek(max(0, file.tell() - 1))
            torn = file.read() not in (b"", b"\n")  # by a bench that was killed while it wrote
            file.write(b"\n" * torn + json.dumps(asdict(record)).encode() + b"\n")
        self.records.append(record)

    def forget(self, subject: str) -> None:
        """Take a subject's records out of the file, to measure it anew."""
        kept = [record for record in _read(self.file) if record.subject != subject]
        self.records = [record for record in self.records if record.subject != subject]
        text = "".join(json.dumps(asdict(record)) + "\n" for record in kept)
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.file)

    def of(self, subject: str, task: str) -> list[Record]:
        """What was measured, in order, without failures."""
        return [
            r for r in self.records if (r.subject, r.task) == (subject, task) and r.error is None
        ]

    def error(self, subject: str, task: str) -> str | None:
        """Why a task has no figures: its last failure, unless it was measured at all."""
        if self.of(subject, task):
            return None
        errors = [r.error for r in self.records if (r.subject, r.task) == (subject, task)]
        return errors[-1] if errors else None


def figure(records: list[Record], name: str) -> list[float]:
    """One figure's values; a figure that a process repeated gives all of them."""
    found = [record.figures[name] for record in records if name in record.figures]
    return [value for one in found for value in (one if isinstance(one, list) else [one])]


def middle(records: list[Record], name: str) -> float | None:
    """A figure's median, or None if nothing has it."""
    values = figure(records, name)
    return median(values) if values else None


def setting() -> str:
    """What results may share a table: saescope's source, torch, processor and number of cores, as a hash."""
    digest = hashlib.sha256(f"{processor()} {os.cpu_count()} {metadata.version('torch')}".encode())
    for file in sorted((ROOT / "src" / "saescope").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def processor() -> str:
    """Its name."""
    match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return match[1] if match else platform.processor()


def _read(file: Path) -> Iterator[Record]:
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            yield Record(**json.loads(line))
        except (
            ValueError,
            TypeError,
        ):  # the last line of a bench that was killed, or one of an older format
            continue
