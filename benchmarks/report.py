"""Results as Markdown tables, and their place in benchmarks/README.md."""

import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median

from benchmarks.workloads import Workload

README = Path(__file__).parent / "README.md"
TITLES = {
    "article_loop": "the article's loop",
    "transformers_cut": "transformers, cut",
    "saescope_run": "saescope",
    "saescope_streamed": "saescope, streamed",
    "transformers_float32": "transformers, cut, float32",
    "saescope_float32": "saescope, float32",
}


@dataclass(frozen=True)
class Result:
    """One process's figures: seconds and bytes."""

    load_s: float
    compute_s: float
    wall_s: float
    tokens: int
    peak_rss: int
    peak_anonymous: int
    peak_file: int
    ru_maxrss: int


_ROWS: dict[str, tuple[Callable[[Result], float], str]] = {
    "tokens/s after loading": (lambda r: r.tokens / r.compute_s, ".0f"),
    "loading, imports included, s": (lambda r: r.load_s, ".1f"),
    "whole process, s": (lambda r: r.wall_s, ".1f"),
    "peak memory, MB": (lambda r: r.peak_rss / 1e6, ",.0f"),
    "peak memory not backed by files, MB": (lambda r: r.peak_anonymous / 1e6, ",.0f"),
}


def report(workload: Workload, results: Mapping[str, Sequence[Result]], shared: Mapping[str, float]) -> str:
    """A workload's table: medians, and the least and most where they differ as shown."""
    tokens = next(iter(results.values()))[0].tokens
    lines = [f"| {workload.title}, {tokens:,} tokens | " + " | ".join(TITLES[way] for way in results) + " |"]
    lines.append("|---" * (len(results) + 1) + "|")
    for title, (figure, style) in _ROWS.items():
        cells = [_cell([figure(result) for result in of_way], style) for of_way in results.values()]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines.append("| top 50 shared with the cut | " + " | ".join(f"{shared[way]:.1%}" for way in results) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float], style: str) -> str:
    least, middle, most = (format(v, style) for v in (min(values), median(values), max(values)))
    return middle if least == most else f"{middle} ({least}–{most})"


def write_readme(key: str, title: str, times: int, text: str) -> None:
    """Print the tables, and put them between the shape's two markers in README.md if it has them."""
    body = f"{_header(title, times)}\n\n{text}\n"
    print(body)
    begin, end = f"<!-- {key} -->", f"<!-- /{key} -->"
    readme = README.read_text(encoding="utf-8")
    if begin in readme:
        pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
        README.write_text(pattern.sub(lambda _: f"{begin}\n{body}{end}", readme), encoding="utf-8")


def _header(title: str, times: int) -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "saescope"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine = f"{_processor()}, {os.cpu_count()} cores, {memory / 2**30:.0f} GiB, no GPU used"
    command = shlex.join(["scripts/bench", *sys.argv[1:]])
    return (
        f"{title}, bfloat16 unless a way is called otherwise. `{command}`, "
        f"{datetime.now(UTC):%Y-%m-%d}; medians of {times} runs in turn, "
        f"in brackets the least and the most.\n{machine}; Python {platform.python_version()}, "
        f"{versions}."
    )


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    match = re.search(r"model name\s*:\s*(.+)", text)
    return match[1] if match else platform.processor()
