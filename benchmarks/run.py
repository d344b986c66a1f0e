"""Measure saescope beside other implementations and write the tables: `scripts/bench`.

Every process's figures are stored when it ends, so the same command continues an interrupted bench.
"""

import shutil
import sys
import time
from collections.abc import Sequence
from functools import partial

from benchmarks.goals import goals_table
from benchmarks.make_model import make
from benchmarks.options import Bench, parse_options, refusal
from benchmarks.processes import Figures, ProcessFailed
from benchmarks.quiet import undisturbed
from benchmarks.report import render, write
from benchmarks.results import Record, Results
from benchmarks.subject import Setup, Subject, SubjectResults, Task
from benchmarks.subjects import SUBJECTS

UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h: try again
_SHOWN_FIGURES = ("wall_s", "tokens_per_s", "peak_anonymous")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    bench, options = parse_options(arguments)
    message = refusal(bench)
    if message:
        print(message, file=sys.stderr)
        return 2
    if options.again:
        for subject in bench.subjects:
            bench.results(subject).forget(subject.name)
    announce(bench)
    if options.list:
        return 0
    try:
        return run(bench, tables_only=options.tables)
    except OutOfTime:
        message = f"stopped after {options.minutes:g} minutes: run the same command to continue"
        print(message, file=sys.stderr)
        return UNFINISHED
    except KeyboardInterrupt:
        print("interrupted: run the same command to continue", file=sys.stderr)
        return 130


def announce(bench: Bench) -> None:
    """Print what remains to be measured and about how long it takes on two cores."""
    total = 0.0
    for subject in bench.subjects:
        setup, results = bench.setup(subject), bench.results(subject)
        seconds = remaining_seconds(subject, setup, results)
        total += seconds
        status = f"about {max(1, seconds / 60):.0f} min" if seconds else "measured"
        if results.n_ignored:
            status += f", {results.n_ignored} results of another saescope or machine ignored"
        size = f"{len(subject.tasks)} tasks × {bench.rounds(subject)}"
        print(f"{subject.name:9} {setup.shape.name:10} {size}: {status}")
    minutes = f"{total / 60:.0f} min"
    print(f"total: about {minutes} on two cores, plus making files and environments", flush=True)


def run(bench: Bench, *, tables_only: bool) -> int:
    """Measure every subject and publish its table; returns 1 if anything failed."""
    failed = False
    for subject in bench.subjects:
        try:
            results = bench.results(subject) if tables_only else measure(bench, subject)
        except ProcessFailed as error:  # its files could not be made
            print(f"{subject.name}: {error}", file=sys.stderr)
            failed = True
            continue
        publish(bench, subject, results)
        if not tables_only and not remaining_seconds(subject, bench.setup(subject), results):
            _delete_large_files(bench, subject)
        failed |= any(results.error(subject.name, task.name) for task in subject.tasks)
    return int(failed)


class OutOfTime(Exception):
    """`--minutes` are over."""


def measure(bench: Bench, subject: Subject) -> Results:
    """Measure every task of a subject in alternation, so that a slow minute affects all of them."""
    setup, results = bench.setup(subject), bench.results(subject)
    if not remaining_seconds(subject, setup, results):
        return results
    _make_files(bench, subject, setup)
    rounds = bench.rounds(subject)
    failed: set[str] = set()
    for number in range(rounds):
        for task in subject.tasks:
            if task.name in failed or _times_measured(subject, task, setup, results) > number:
                continue
            if time.monotonic() > bench.deadline:
                raise OutOfTime
            record = _measure_once(bench, subject, task, setup)
            results.add(record)
            if record.error:
                failed.add(task.name)
            outcome = record.error or _shown(record.figures)
            progress = f"{subject.name} {number + 1}/{rounds} {task.name}: {outcome}"
            print(progress, file=sys.stderr, flush=True)
    return results


def _measure_once(bench: Bench, subject: Subject, task: Task, setup: Setup) -> Record:
    setting = bench.results(subject).setting
    try:
        figures, others = undisturbed(partial(task.run, setup), busy=bench.busy)
    except ProcessFailed as error:
        return Record(subject.name, task.name, setting, error=str(error))
    return Record(subject.name, task.name, setting, figures, others=others)


def _shown(figures: Figures) -> str:
    shown = []
    for name, value in figures.items():
        if name in _SHOWN_FIGURES and isinstance(value, (int, float)):
            shown.append(f"{name} {value:,.1f}")
    return ", ".join(shown)


def remaining_seconds(subject: Subject, setup: Setup, results: Results) -> float:
    """About how long the runs take that are not measured yet."""
    rounds = subject.rounds or setup.repeats
    seconds = 0.0
    for task in subject.tasks:
        remaining = rounds - _times_measured(subject, task, setup, results)
        seconds += task.seconds * max(0, remaining)
    return seconds


def _times_measured(subject: Subject, task: Task, setup: Setup, results: Results) -> int:
    """How often a task was measured, without processes that repeated it less often than asked."""
    records = results.of(subject.name, task.name)
    return sum(r.figures.get("repeated", setup.repeats) >= setup.repeats for r in records)


def _make_files(bench: Bench, subject: Subject, setup: Setup) -> None:
    if subject.needs_model:
        layers = range(setup.shape.layers) if subject.all_layers else [setup.layer]
        make(setup.shape, bench.shape_folder(subject), layers, decoders=not subject.all_layers)
    setup.scratch.mkdir(parents=True, exist_ok=True)


def _delete_large_files(bench: Bench, subject: Subject) -> None:
    """Delete a large shape's files once its table is complete."""
    if not subject.all_layers or bench.keep or not bench.in_readme(subject):
        return
    files = bench.setup(subject).files
    for folder in (files.model, files.sae):
        shutil.rmtree(folder, ignore_errors=True)


def publish(bench: Bench, subject: Subject, results: Results) -> None:
    """Print a table; also write it to README.md if it was measured as README.md says."""
    text = render(SubjectResults(subject, bench.setup(subject), results))
    print(f"\n{subject.name}\n\n{text}", flush=True)
    if not bench.in_readme(subject):
        return
    on_cpu = bench.device == "cpu"
    key = subject.name if on_cpu else f"{bench.device} {subject.name}"
    if not write(key, text):
        print(f"benchmarks/README.md has no markers for {subject.name}", file=sys.stderr)
    if on_cpu:
        results_by_shape = {other.shape: bench.results(other) for other in SUBJECTS.values()}
        write("goals", goals_table(results_by_shape))


if __name__ == "__main__":
    sys.exit(main())
