"""Everything the bench measures, one table each, in the order of benchmarks/README.md."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import stored_run, tables
from benchmarks.goals import LARGE, MAIN
from benchmarks.results import Results
from benchmarks.tasks import (
    ARTICLE,
    CUT,
    CUT_FLOAT32,
    NNSIGHT,
    SAE_LENS,
    SAESCOPE,
    SAESCOPE_FLOAT32,
    STREAMED,
    TRANSFORMER_LENS,
    Place,
    Task,
    Way,
    bake,
    contrast,
    copy,
    in_process,
    rates,
    saescope_command,
)
from benchmarks.workloads import WORKLOADS

_METHOD = "every-write"  # which touches the most weights

Render = Callable[[Results, "Subject", Place], str]


@dataclass(frozen=True)
class Subject:
    """One table: its tasks in the order they take turns, each `turns` times where that is not the bench's own number.

    `shape` is what it is measured on when no other is asked for; `all_layers` needs every layer's SAE; some are not
    `of_model`.
    """

    name: str
    tasks: tuple[Task, ...]
    render: Render
    turns: int | None = None
    shape: str = MAIN
    all_layers: bool = False
    of_model: bool = True
    devices: tuple[str, ...] = ("cpu", "cuda")

    def seconds(self, times: int) -> float:
        """About how long all turns take on two cores, the files being there."""
        return (self.turns or times) * sum(task.seconds for task in self.tasks)


def _workload(
    name: str,
    ways: Sequence[tuple[Way, float]],
    workload: str,
    rows: Sequence[int],
    *,
    cold: bool = False,
) -> Subject:
    """Ways on the same prompts, and the rate of products at `rows` like theirs; seconds are of one process."""
    tasks = (way.task(WORKLOADS[workload], seconds, cold=cold) for way, seconds in ways)
    return Subject(name, (rates(rows), *tasks), partial(tables.ways, WORKLOADS[workload]))


def _startup() -> Subject:
    def stored(kind: str) -> Callable[[Place, Path], Sequence[str]]:
        return lambda place, _folder: ("contrast", str(stored_run.kept(kind, place.scratch)))

    tasks = (
        saescope_command("help", "`saescope --help`", 1, lambda _place, _folder: ("--help",)),
        saescope_command("pair", "`contrast` on a run of the embedded pair", 2, stored("pair")),
        saescope_command(
            "one",
            "`contrast` on a run of 65,536 features × 60 prompts, one layer",
            2,
            stored("one"),
        ),
        saescope_command("all", "the same with 36 layers", 5, stored("all")),
    )
    return Subject("startup", tasks, tables.whole_processes, of_model=False, devices=("cpu",))


def _bake() -> Subject:
    tasks = (
        Task("copy", "copying the model's files", 15, copy),
        Task("write", "`saescope bake --no-measure`", 40, partial(bake, _METHOD, measured=False)),
        Task(
            "bake",
            "`saescope bake`, measured against its hook",
            240,
            partial(bake, _METHOD, measured=True),
        ),
    )
    return Subject("bake", tasks, tables.baking, devices=("cpu",))


def _large() -> Subject:
    tasks = (
        contrast("one", "one layer", 60, "", limited=False),
        contrast("one limited", "one layer, under the limit", 60, "", limited=True),
        contrast("all", "all layers", 150, "all", limited=False),
        contrast("all limited", "all layers, under the limit", 150, "all", limited=True),
    )
    return Subject("large", tasks, tables.limited, shape=LARGE, all_layers=True)


def _probes() -> Sequence[Subject]:
    """What one process measures in turn by itself."""
    shared = in_process("prefix", "a shared prefix", 780, of_model=True)
    encoding = in_process("encode", "encoding", 60, of_model=False)
    steering = in_process("steered", "steering", 240, of_model=True, turns=2)
    return (
        Subject("prefix", (shared,), tables.prefix, turns=1),
        Subject("encode", (encoding,), tables.encoding, turns=1, of_model=False),
        Subject("steered", (steering,), tables.steering, turns=1),
    )


_SHORT = (
    (CUT, 13), (SAE_LENS, 20), (TRANSFORMER_LENS, 25), (NNSIGHT, 22), (ARTICLE, 40), (SAESCOPE, 12), (STREAMED, 12)
)  # fmt: skip
_MEDIUM = (
    (CUT, 20), (SAE_LENS, 26), (TRANSFORMER_LENS, 30), (NNSIGHT, 28), (ARTICLE, 45), (SAESCOPE, 18), (STREAMED, 18)
)  # fmt: skip
_MANY = ((CUT, 100), (SAESCOPE, 90), (STREAMED, 90))

SUBJECTS = {
    subject.name: subject
    for subject in (
        _workload("short", _SHORT, "short", [64, 484]),
        _workload("medium", _MEDIUM, "medium", [512, 1536]),
        _workload("many", _MANY, "many", [512, 2048]),
        _workload("float32", ((CUT_FLOAT32, 25), (SAESCOPE_FLOAT32, 22)), "medium", [512, 1536]),
        _workload(
            "cold", ((CUT, 20), (SAESCOPE, 20), (STREAMED, 20)), "short", [64, 484], cold=True
        ),
        *_probes(),
        _startup(),
        _bake(),
        _large(),
    )
}
