"""Options of `scripts/bench`, and what they select."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.make_model import locate
from benchmarks.processes import ROOT
from benchmarks.results import Results, current_setting
from benchmarks.shapes import SHAPES
from benchmarks.subject import Setup, Subject
from benchmarks.subjects import SUBJECTS

_DESCRIPTION = """Measure saescope beside other implementations and write the tables.

Every process's figures are stored when it ends, so the same command continues an interrupted bench.
"""


@dataclass(frozen=True)
class Bench:
    """What to measure and how; no process starts after `deadline` of time.monotonic."""

    subjects: tuple[Subject, ...]
    folder: Path
    shape: str | None = None
    layer: int | None = None
    device: str = "cpu"
    repeats: int = 5
    deadline: float = float("inf")
    busy: bool = False
    keep: bool = False

    def shape_name(self, subject: Subject) -> str:
        """The shape a subject is measured on: `--shape` or the subject's own."""
        return self.shape or subject.shape

    def shape_folder(self, subject: Subject) -> Path:
        """Where the files of that shape are, or will be."""
        return self.folder / self.shape_name(subject)

    def rounds(self, subject: Subject) -> int:
        """How often each task of a subject is run."""
        return subject.rounds or self.repeats

    def setup(self, subject: Subject) -> Setup:
        """What a subject is measured with; its files need not exist yet."""
        shape = SHAPES[self.shape_name(subject)]
        layer = shape.middle if self.layer is None else self.layer
        files = locate(shape, self.shape_folder(subject), decoders=not subject.all_layers)
        return Setup(
            shape=shape,
            layer=layer,
            device=self.device,
            files=files,
            environments=self.folder / "peers",
            scratch=self.folder / "results",
            repeats=self.repeats,
        )

    def results(self, subject: Subject) -> Results:
        """Everything measured so far on this shape and device."""
        name = f"{self.shape_name(subject)}-{self.device}.jsonl"
        return Results(self.folder / "results" / name, current_setting())

    def in_readme(self, subject: Subject) -> bool:
        """Whether README.md has a table for this shape and layer."""
        return self.shape in (None, subject.shape) and self.layer is None


def parse_options(arguments: Sequence[str] | None) -> tuple[Bench, argparse.Namespace]:
    """The bench that the options describe, and the options themselves."""
    options = _parser().parse_args(arguments)
    bench = Bench(
        subjects=tuple(_selected_subjects(options)),
        folder=options.folder.resolve(),
        shape=options.shape,
        layer=options.layer,
        device=options.device,
        repeats=options.times,
        deadline=time.monotonic() + 60 * options.minutes,
        busy=options.busy,
        keep=options.keep,
    )
    return bench, options


def refusal(bench: Bench) -> str | None:
    """Why this bench cannot run, in one line."""
    for subject in bench.subjects:
        shape = SHAPES[bench.shape_name(subject)]
        if bench.device not in subject.devices:
            return f"--only {subject.name}: not measured on {bench.device}"
        if bench.layer is not None and not 0 <= bench.layer < shape.layers:
            last = shape.layers - 1
            return f"--layer must lie between 0 and {last} for {shape.name}, got {bench.layer}"
    if bench.repeats < 1:
        return f"--times must be at least 1, got {bench.repeats}"
    if bench.device == "cuda" and not _has_cuda():
        return "--device cuda: torch finds no CUDA device on this machine"
    return None


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _selected_subjects(options: argparse.Namespace) -> list[Subject]:
    """The subjects of `--only`; by default all that the device and the shape allow."""
    if options.only:
        return [SUBJECTS[name] for name in options.only]
    selected = []
    for subject in SUBJECTS.values():
        fits_shape = options.shape in (None, "tiny", subject.shape)
        if fits_shape and options.device in subject.devices:
            selected.append(subject)
    return selected


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    subjects = ", ".join(SUBJECTS)
    add("--only", nargs="+", choices=SUBJECTS, metavar="SUBJECT", help=f"any of {subjects}")
    add("--times", type=int, default=5, help="runs of each task; default: 5")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--shape", choices=SHAPES, help="model shape; tiny is for trying out the bench")
    add("--layer", type=int, help="default: the layer below the middle")
    folder = ROOT / "build" / "bench"
    add("--folder", type=Path, default=folder, help="models, environments and results")
    add("--list", action="store_true", help="only list what remains and how long it takes")
    add("--tables", action="store_true", help="measure nothing, write tables of stored results")
    minutes_help = "start no process after this many minutes, exit with code 75"
    add("--minutes", type=float, default=float("inf"), help=minutes_help)
    add("--again", action="store_true", help="delete the results of these subjects first")
    add("--busy", action="store_true", help="measure even if other processes use the machine")
    add("--keep", action="store_true", help="keep the 55 GB of the large shape afterwards")
    return parser
