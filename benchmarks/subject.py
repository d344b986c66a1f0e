"""What makes up one table of benchmarks/README.md: tasks, their setup and their results."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.make_model import ModelFiles
from benchmarks.processes import Figures
from benchmarks.results import Record, Results
from benchmarks.shapes import MAIN, Shape


@dataclass(frozen=True)
class Setup:
    """What a task is measured with: a shape's files, a layer, a device, and folders for the rest.

    `environments` holds the virtual environments of peers, `scratch` prompts and ids to compare.
    """

    shape: Shape
    layer: int
    device: str
    files: ModelFiles
    environments: Path
    scratch: Path
    repeats: int


@dataclass(frozen=True)
class Task:
    """One row of a table: a function that is measured once per round.

    `seconds` is about what one run takes on two cores. `environment` names the virtual environment
    of a peer; empty for saescope's own.
    """

    name: str
    title: str
    seconds: float
    run: Callable[[Setup], Figures]
    environment: str = ""


@dataclass(frozen=True)
class Subject:
    """One table: its tasks, which alternate, and the function that renders their results.

    `rounds` overrides `--times`, and `--shape` overrides `shape`. `all_layers` needs an SAE for
    every layer; without `needs_model`, no model is loaded.
    """

    name: str
    tasks: tuple[Task, ...]
    render: Callable[["SubjectResults"], str]
    rounds: int | None = None
    shape: str = MAIN
    all_layers: bool = False
    needs_model: bool = True
    devices: tuple[str, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class SubjectResults:
    """The results of one subject on one setup: what a table is rendered from."""

    subject: Subject
    setup: Setup
    results: Results

    def records(self, task: str) -> list[Record]:
        """Successful records of a task, oldest first."""
        return self.results.of(self.subject.name, task)

    def all_records(self) -> list[Record]:
        """Successful records of every task."""
        return [record for task in self.subject.tasks for record in self.records(task.name)]

    def reason(self, task: str) -> str:
        """Why a task has no figures."""
        return self.results.error(self.subject.name, task) or "not measured"
