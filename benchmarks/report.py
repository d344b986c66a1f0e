"""Tables in their places in benchmarks/README.md, each under a line that says how it was measured."""

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.environments import pins
from benchmarks.results import Record, Results, processor

if TYPE_CHECKING:
    from benchmarks.subjects import Subject
    from benchmarks.tasks import Place

README = Path(__file__).parent / "README.md"


def rendered(subject: "Subject", results: Results, place: "Place") -> str:
    """A subject's table from its results, whatever there are."""
    return f"{_caption(subject, results, place)}\n\n{subject.render(results, subject, place)}\n"


def write(key: str, text: str, readme: Path = README) -> bool:
    """Put a text between the two markers of a key; False if there are none."""
    begin, end = f"<!-- {key} -->", f"<!-- /{key} -->"
    before = readme.read_text(encoding="utf-8")
    if begin not in before or end not in before:
        return False
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    readme.write_text(pattern.sub(lambda _: f"{begin}\n{text}{end}", before), encoding="utf-8")
    return True


def _caption(subject: "Subject", results: Results, place: "Place") -> str:
    records = [record for task in subject.tasks for record in results.of(subject.name, task.name)]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [f"{place.shape.name}'s shape, layer {place.layer}"] if subject.of_model else []
    parts.append(
        f"medians of {_count(subject, results)}, in turn, in brackets the least and the most"
    )
    days = sorted({record.time.split()[0] for record in records})
    parts += [" to ".join(dict.fromkeys((days[0], days[-1])))] if days else []
    parts.append(f"{processor()}, {os.cpu_count()} cores, {memory:.0f} GiB{_gpu(records)}")
    parts.append(f"Python {platform.python_version()}, {_versions(subject)}")
    if records:
        parts.append(
            f"others used at most {max(record.others for record in records):.0%} of the cores meanwhile"
        )
    return "; ".join(parts) + "."


def _count(subject: "Subject", results: Results) -> str:
    """How often each task was measured, in its processes or within one."""
    counts = set()
    for task in subject.tasks:
        of_task = results.of(subject.name, task.name)
        repeated = [int(r.figures["repeated"]) for r in of_task if "repeated" in r.figures]
        counts |= {sum(repeated)} if repeated else {len(of_task)}
    counts -= {0}
    return " to ".join(map(str, sorted({min(counts), max(counts)}))) if counts else "0"


def _versions(subject: "Subject") -> str:
    """Of what all ways stand on, and of the peers among them."""
    names = [f"{name} {metadata.version(name)}" for name in ("torch", "transformers")]
    for environment in sorted({task.environment for task in subject.tasks} - {""}):
        names += pins(environment)
    return ", ".join(names)


def _gpu(records: list[Record]) -> str:
    names = {str(record.figures["gpu"]) for record in records if "gpu" in record.figures}
    return "".join(f", {name}" for name in sorted(names))
