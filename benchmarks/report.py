"""Write tables to benchmarks/README.md, each below a caption on how it was measured."""

import os
import platform
import re
from importlib import metadata
from pathlib import Path

from benchmarks.environments import pins
from benchmarks.results import Record, processor
from benchmarks.subject import Subject, SubjectResults
from benchmarks.tables import wrap

README = Path(__file__).parent / "README.md"


def render(measured: SubjectResults) -> str:
    """A subject's caption and table, whether or not everything was measured."""
    return f"{_caption(measured)}\n\n{measured.subject.render(measured)}\n"


def write(key: str, text: str, readme: Path = README) -> bool:
    """Replace the text between the two markers of `key`; False if the file has no such markers."""
    begin, end = f"<!-- {key} -->", f"<!-- /{key} -->"
    before = readme.read_text(encoding="utf-8")
    if begin not in before or end not in before:
        return False
    section = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    after = section.sub(lambda _: f"{begin}\n{text}{end}", before)
    readme.write_text(after, encoding="utf-8")
    return True


def _caption(measured: SubjectResults) -> str:
    subject, setup, records = measured.subject, measured.setup, measured.all_records()
    parts = []
    if subject.needs_model:
        parts.append(f"{setup.shape.name} shape, layer {setup.layer}")
    parts.append(f"median of {_repeats(measured)} interleaved runs (minimum–maximum)")
    if records:
        parts.append(_days(records))
    parts.append(_machine(records))
    parts.append(f"Python {platform.python_version()}, {_versions(subject)}")
    if records:
        others = max(record.others for record in records)
        parts.append(f"other processes used at most {others:.0%} of the cores")
    return wrap("; ".join(parts) + ".")


def _repeats(measured: SubjectResults) -> str:
    """How often each task was measured, in separate processes or within one."""
    counts = set()
    for task in measured.subject.tasks:
        records = measured.records(task.name)
        within = [int(r.figures["repeated"]) for r in records if "repeated" in r.figures]
        counts.add(sum(within) if within else len(records))
    counts.discard(0)
    if not counts:
        return "0"
    return _range(str(min(counts)), str(max(counts)))


def _days(records: list[Record]) -> str:
    days = [record.time.split()[0] for record in records]
    return _range(min(days), max(days))


def _range(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"


def _machine(records: list[Record]) -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [processor(), f"{os.cpu_count()} cores", f"{memory:.0f} GiB"]
    gpus = {str(record.figures["gpu"]) for record in records if "gpu" in record.figures}
    return ", ".join([*parts, *sorted(gpus)])


def _versions(subject: Subject) -> str:
    """Versions of torch, transformers and the peers."""
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "transformers")]
    environments = {task.environment for task in subject.tasks if task.environment}
    for environment in sorted(environments):
        versions += pins(environment)
    return ", ".join(versions)
