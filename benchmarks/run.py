"""Measure saescope beside what else does the same work, in turn, and write the tables: `scripts/bench`.

Every process's figures are kept as soon as it ends: the same command goes on where an interrupted one stopped.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.goals import goals_table
from benchmarks.make_model import make, where
from benchmarks.processes import ROOT, Failed
from benchmarks.quiet import undisturbed
from benchmarks.report import rendered, write
from benchmarks.results import Record, Results, setting
from benchmarks.shapes import SHAPES
from benchmarks.subjects import SUBJECTS, Subject
from benchmarks.tasks import Place, Task

UNFINISHED = 75  # as sysexits.h calls a failure that another try mends


@dataclass(frozen=True)
class Bench:
    """What was asked for; no process is begun after `deadline` of time.monotonic."""

    subjects: tuple[Subject, ...]
    shape: str | None
    layer: int | None
    device: str
    folder: Path
    times: int
    deadline: float
    busy: bool
    keep: bool

    def place(self, subject: Subject) -> Place:
        """Where a subject is measured; its files may not be made yet."""
        shape = SHAPES[self.shape or subject.shape]
        folder = self.folder / (self.shape or subject.shape)
        layer = shape.middle if self.layer is None else self.layer
        made = where(shape, folder, decoders=not subject.all_layers)
        return Place(
            shape,
            layer,
            self.device,
            made,
            self.folder / "peers",
            self.folder / "results",
            self.times,
        )

    def results(self, subject: Subject) -> Results:
        """What was measured on this shape and device before."""
        return Results(
            self.folder / "results" / f"{self.shape or subject.shape}-{self.device}.jsonl",
            setting(),
        )

    def written(self, subject: Subject) -> bool:
        """Whether the table belongs into README.md: that of the shape it is meant for."""
        return self.shape in (None, subject.shape) and self.layer is None


class OutOfTime(Exception):
    """The minutes that were given are over."""


def measure(bench: Bench, subject: Subject) -> Results:
    """Every task as often as asked, in turn, so that a slow minute of the machine meets all of them."""
    place, results = bench.place(subject), bench.results(subject)
    if not missing(subject, place, results):
        return results
    _make(bench, subject, place)
    turns, failed = subject.turns or bench.times, set()
    for turn in range(turns):
        for task in subject.tasks:
            if task.name in failed or _done(subject, task, place, results) > turn:
                continue
            if time.monotonic() > bench.deadline:
                raise OutOfTime
            record = _measured(bench, subject, task, place, results.setting)
            results.add(record)
            failed |= {task.name} if record.error else set()
            said = record.error or ", ".join(
                f"{k} {v:,.1f}" for k, v in record.figures.items() if _tells(k, v)
            )
            print(
                f"{subject.name} {turn + 1}/{turns} {task.name}: {said}",
                file=sys.stderr,
                flush=True,
            )
    return results


def _measured(bench: Bench, subject: Subject, task: Task, place: Place, kept_for: str) -> Record:
    try:
        figures, others = undisturbed(partial(task.run, place), busy=bench.busy)
        return Record(subject.name, task.name, kept_for, figures, others=others)
    except Failed as error:
        return Record(subject.name, task.name, kept_for, error=str(error))


def _tells(name: str, value: object) -> bool:
    return isinstance(value, (int, float)) and name in ("wall_s", "tokens_per_s", "peak_anonymous")


def _done(subject: Subject, task: Task, place: Place, results: Results) -> int:
    """How often a task was measured; processes that repeated it less often than is asked do not count."""
    records = results.of(subject.name, task.name)
    return sum(record.figures.get("repeated", place.times) >= place.times for record in records)


def missing(subject: Subject, place: Place, results: Results) -> float:
    """Seconds that what is not measured yet will take, about."""
    turns = subject.turns or place.times
    return sum(
        task.seconds * max(0, turns - _done(subject, task, place, results))
        for task in subject.tasks
    )


def _make(bench: Bench, subject: Subject, place: Place) -> None:
    if not subject.of_model:
        place.scratch.mkdir(parents=True, exist_ok=True)
        return
    layers = range(place.shape.layers) if subject.all_layers else [place.layer]
    folder = bench.folder / (bench.shape or subject.shape)
    make(place.shape, folder, layers, decoders=not subject.all_layers)
    place.scratch.mkdir(parents=True, exist_ok=True)


def _clear(bench: Bench, subject: Subject) -> None:
    """Delete a large shape's files once its table is whole."""
    if subject.all_layers and not bench.keep and bench.written(subject):
        for folder in (bench.place(subject).made.model, bench.place(subject).made.sae):
            shutil.rmtree(folder, ignore_errors=True)


def announce(bench: Bench) -> None:
    """Print what there is to do and about how long it takes on two cores."""
    total = 0.0
    for subject in bench.subjects:
        place, results = bench.place(subject), bench.results(subject)
        seconds = missing(subject, place, results)
        total += seconds
        turns = subject.turns or bench.times
        done = "measured" if not seconds else f"about {max(1, seconds / 60):.0f} min"
        older = (
            f", {results.others} results of another saescope or machine left out"
            if results.others
            else ""
        )
        print(
            f"{subject.name:9} {place.shape.name:10} {len(subject.tasks)} tasks × {turns}: {done}{older}"
        )
    print(
        f"in all about {total / 60:.0f} min on two cores, beside making files and environments",
        flush=True,
    )


def publish(bench: Bench, subject: Subject, results: Results) -> None:
    """Print a table, and put it into README.md where it belongs there."""
    text = rendered(subject, results, bench.place(subject))
    print(f"\n{subject.name}\n\n{text}", flush=True)
    if not bench.written(subject):
        return
    if not write(subject.name if bench.device == "cpu" else f"{bench.device} {subject.name}", text):
        print(f"benchmarks/README.md has no markers for {subject.name}", file=sys.stderr)
    if bench.device == "cpu":
        of_shape = {one.shape: bench.results(one) for one in SUBJECTS.values()}
        write("goals", goals_table(of_shape))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    args = _parser().parse_args(arguments)
    bench = _bench(args)
    if refusal := _refusal(bench):
        print(refusal, file=sys.stderr)
        return 2
    if args.again:
        for subject in bench.subjects:
            bench.results(subject).forget(subject.name)
    announce(bench)
    if args.list:
        return 0
    try:
        return _run(bench, tables_only=args.tables)
    except OutOfTime:
        print(
            f"{args.minutes:g} minutes are over: the same command goes on from here",
            file=sys.stderr,
        )
        return UNFINISHED
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130


def _run(bench: Bench, *, tables_only: bool) -> int:
    failed = False
    for subject in bench.subjects:
        try:
            results = bench.results(subject) if tables_only else measure(bench, subject)
        except Failed as error:  # its files could not be made
            print(f"{subject.name}: {error}", file=sys.stderr)
            failed = True
            continue
        publish(bench, subject, results)
        if not tables_only and not missing(subject, bench.place(subject), results):
            _clear(bench, subject)
        failed |= any(results.error(subject.name, task.name) for task in subject.tasks)
    return int(failed)


def _bench(args: argparse.Namespace) -> Bench:
    """What the options ask for: named subjects, or those of the shape, all of them where neither is given."""
    meant = (
        s
        for s in SUBJECTS.values()
        if args.device in s.devices and args.shape in (None, "tiny", s.shape)
    )
    chosen = [SUBJECTS[name] for name in args.only] if args.only else list(meant)
    return Bench(
        subjects=tuple(chosen),
        shape=args.shape,
        layer=args.layer,
        device=args.device,
        folder=args.folder.resolve(),
        times=args.times,
        deadline=time.monotonic() + 60 * args.minutes,
        busy=args.busy,
        keep=args.keep,
    )


def _refusal(bench: Bench) -> str | None:
    """Why this cannot be measured, in one line."""
    for subject in bench.subjects:
        shape = bench.place(subject).shape
        if bench.device not in subject.devices:
            return f"--only {subject.name}: not measured on {bench.device}"
        if bench.layer is not None and not 0 <= bench.layer < shape.layers:
            return f"--layer {bench.layer}: {shape.name} has layers 0-{shape.layers - 1}"
    if bench.times < 1:
        return f"--times {bench.times}: at least 1"
    if bench.device == "cuda" and not _has_cuda():
        return "--device cuda: torch finds no CUDA device on this machine"
    return None


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", nargs="+", choices=SUBJECTS, metavar="SUBJECT", help=", ".join(SUBJECTS)
    )
    parser.add_argument("--times", type=int, default=5, help="how often each way is measured (5)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--shape",
        choices=SHAPES,
        help="another shape than a subject's own; tiny tries the bench out",
    )
    parser.add_argument("--layer", type=int, help="another layer than the one below the middle")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "bench", help="files, environments, results"
    )
    parser.add_argument(
        "--list", action="store_true", help="only say what there is to do and how long it takes"
    )
    parser.add_argument(
        "--tables",
        action="store_true",
        help="measure nothing: write the tables of what was measured",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="begin nothing after so many; exit code 75",
    )
    parser.add_argument("--again", action="store_true", help="forget these subjects' results first")
    parser.add_argument(
        "--busy", action="store_true", help="measure even while others use the machine"
    )
    parser.add_argument(
        "--keep", action="store_true", help="do not delete the large shape's 55 GB afterwards"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
