"""Everything the bench measures: one subject per table, in the order of benchmarks/README.md."""

from collections.abc import Callable, Sequence
from functools import partial

from benchmarks import stored_run, tables, tasks
from benchmarks.shapes import LARGE, SMALL
from benchmarks.subject import Setup, Subject, Task
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
    Implementation,
    saescope_command,
)
from benchmarks.workloads import WORKLOADS

_BAKE_METHOD = "every-write"  # the method that changes the most weights
_Timed = Sequence[tuple[Implementation, float]]


def _subjects() -> Sequence[Subject]:
    return (
        _workload("short", _SHORT, "short", rows=[64, 484]),
        _workload("medium", _MEDIUM, "medium", rows=[512, 1536]),
        _workload("many", _MANY, "many", rows=[512, 2048]),
        _workload("float32", _FLOAT32, "medium", rows=[512, 1536]),
        _workload("cold", _COLD, "short", rows=[64, 484], cold=True),
        *_probes(),
        _startup(),
        _bake(),
        _large(),
    )


# Implementations with the approximate seconds of one process on two cores.
_SHORT = (
    (CUT, 13),
    (SAE_LENS, 20),
    (TRANSFORMER_LENS, 25),
    (NNSIGHT, 22),
    (ARTICLE, 40),
    (SAESCOPE, 12),
    (STREAMED, 12),
)
_MEDIUM = (
    (CUT, 20),
    (SAE_LENS, 26),
    (TRANSFORMER_LENS, 30),
    (NNSIGHT, 28),
    (ARTICLE, 45),
    (SAESCOPE, 18),
    (STREAMED, 18),
)
_MANY = ((CUT, 100), (SAESCOPE, 90), (STREAMED, 90))
_FLOAT32 = ((CUT_FLOAT32, 25), (SAESCOPE_FLOAT32, 22))
_COLD = ((CUT, 20), (SAESCOPE, 20), (STREAMED, 20))


def _workload(
    name: str, timed: _Timed, workload_name: str, *, rows: Sequence[int], cold: bool = False
) -> Subject:
    """Implementations on the same prompts, and the rate of matmuls with `rows` like theirs."""
    workload = WORKLOADS[workload_name]
    compared = [way.task(workload, seconds, cold=cold) for way, seconds in timed]
    render = partial(tables.implementations, workload)
    return Subject(name, (tasks.matmul_rates(rows), *compared), render)


def _probes() -> Sequence[Subject]:
    """Comparisons that alternate within one process."""
    prefix = tasks.probe("prefix", "a shared prefix", 780, needs_model=True)
    encode = tasks.probe("encode", "encoding", 60, needs_model=False)
    steered = tasks.probe("steered", "steering", 240, needs_model=True, repeats_factor=2)
    generation = tasks.probe("generation", "generation", 150, needs_model=True)
    conditions = tasks.probe("conditions", "conditions", 600, needs_model=False)
    return (
        Subject("prefix", (prefix,), tables.prefix, rounds=1),
        Subject("encode", (encode,), tables.encoding, rounds=1, needs_model=False),
        Subject("steered", (steered,), tables.steering, rounds=1),
        Subject("generation", (generation,), tables.generation, rounds=1, shape=SMALL),
        Subject(
            "conditions",
            (conditions,),
            tables.conditions,
            rounds=1,
            needs_model=False,
            devices=("cpu",),
        ),
    )


def _startup() -> Subject:
    commands = (
        saescope_command("help", "`saescope --help`", 1, lambda _setup: ("--help",)),
        saescope_command(
            "pair", "`contrast` on a run of the embedded pair", 2, _contrast_stored("pair")
        ),
        saescope_command(
            "one",
            "`contrast` on a run of 65,536 features × 60 prompts, one layer",
            2,
            _contrast_stored("one"),
        ),
        saescope_command("all", "the same with 36 layers", 5, _contrast_stored("all")),
    )
    return Subject("startup", commands, tables.whole_processes, needs_model=False, devices=("cpu",))


def _contrast_stored(kind: str) -> Callable[[Setup], Sequence[str]]:
    return lambda setup: ("contrast", str(stored_run.get_or_make(kind, setup.scratch)))


def _bake() -> Subject:
    write_only = partial(tasks.bake, method=_BAKE_METHOD, measured=False)
    measured = partial(tasks.bake, method=_BAKE_METHOD, measured=True)
    commands = (
        Task("copy", "copy of the model's files", 15, tasks.copy),
        Task("write", "`saescope bake --no-measure`", 40, write_only),
        Task("bake", "`saescope bake`, compared with its hook", 240, measured),
    )
    return Subject("bake", commands, tables.baking, devices=("cpu",))


def _large() -> Subject:
    jobs = (
        tasks.contrast("one", "one layer", 60, "", limited=False),
        tasks.contrast("one limited", "one layer, limited", 60, "", limited=True),
        tasks.contrast("all", "all layers", 150, "all", limited=False),
        tasks.contrast("all limited", "all layers, limited", 150, "all", limited=True),
    )
    return Subject("large", jobs, tables.limited, shape=LARGE, all_layers=True)


SUBJECTS = {subject.name: subject for subject in _subjects()}
