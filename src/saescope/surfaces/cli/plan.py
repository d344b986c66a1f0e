"""`saescope plan`: what a job would fetch, keep on disk and hold in memory, before anything is fetched."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from saescope.errors import PromptError
from saescope.sources.budget import footprints
from saescope.sources.catalog import layer_of
from saescope.sources.job_plan import JobPlan, NeededFile
from saescope.sources.machine import parse_rate, show_bytes, show_seconds
from saescope.sources.plan import plan_job
from saescope.sources.prompts import read_prompts
from saescope.sources.saes import ranges
from saescope.surfaces.cli.inputs import Inputs, is_run, parse_layers
from saescope.surfaces.cli.show import cell, note, print_json, stdout, table

_BYTES_A_TOKEN = 4


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Limits:
    """What there is to fetch and compute with."""

    bandwidth: str = "100Mbit/s"
    "How fast files come, as 100Mbit/s or 12MB/s, to estimate how long fetching takes."


def plan(
    sets: str | None = None,
    /,
    *,
    measure: Annotated[bool, Parameter(negative="")] = False,
    limits: Limits = Limits(),
    inputs: Inputs = Inputs(),  # noqa: B008 (frozen)
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Say what a job would fetch, keep on disk and hold in memory, and whether it fits; fetches no weights.

    Parameters
    ----------
    sets
        Prompt sets, as for contrast, to estimate the work; their tokens are taken as their bytes / 4.
    measure
        Measure how fast this machine multiplies matrices, and estimate the seconds of computing.
    json
        Print one JSON document instead of tables.
    """
    planned = planned_job(sets, inputs, limits)
    rate = _measured(planned) if measure else None
    if json:
        print_json(to_dict(planned, limits, rate))
    else:
        show_plan(stdout(), planned, limits, rate)


def planned_job(sets: str | None, inputs: Inputs, limits: Limits) -> JobPlan:
    """The plan of a job with these options; refuses amounts that cannot be read before anything is looked up."""
    parse_rate(limits.bandwidth)
    if inputs.batch_tokens < 1:
        raise PromptError(f"--batch-tokens is {inputs.batch_tokens}: it must be at least 1")
    model, sae = inputs.names()
    asked = inputs.asked(
        model, sae, "all" if inputs.layers == "all" else parse_layers(inputs.layers)
    )
    return plan_job(replace(asked, tokens=_tokens(sets) if sets else None))


def to_dict(planned: JobPlan, limits: Limits, rate: float | None = None) -> dict[str, Any]:
    """The plan as JSON, with its estimated times."""
    fetching, computing = _seconds(planned, limits, rate)
    return {
        **planned.to_dict(),
        "bandwidth_bytes_per_s": parse_rate(limits.bandwidth),
        "download_seconds": fetching,
        "compute_seconds": computing,
    }


def show_plan(
    console: Console, planned: JobPlan, limits: Limits, rate: float | None = None
) -> None:
    """The files, the ways of running with their memory, the work, and whether it fits."""
    console.print(_files(planned))
    fetching, computing = _seconds(planned, limits, rate)
    _line(
        console,
        f"to fetch   {show_bytes(planned.download_bytes)} of {show_bytes(planned.disk_bytes)}: "
        f"{show_seconds(fetching)} at {limits.bandwidth}; {show_bytes(planned.disk_free)} free at {planned.download_folder}",
    )
    if planned.sizes is not None:
        console.print(_memory(planned))
    if planned.flop_per_token is not None:
        _line(console, _work(planned, computing, rate))
    for line in planned.unknown:
        _line(console, f"not known: {line}")
    console.print("[green]It fits.[/]" if planned.fits else "[red]It does not fit.[/]")
    for line in planned.why:
        _line(console, f"  {line}")
    for line in planned.instead:
        _line(console, f"  instead: {line}")


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def _files(planned: JobPlan) -> Table:
    title = f"files, layer{'s' if len(planned.layers) > 1 else ''} {ranges(planned.layers)}"
    made = table(title, "from", "file", "size", "here", left=2)
    before = None
    for (repo, _), group in groupby(planned.needed, key=_alike):
        files = list(group)
        first, last = files[0].entry.name, files[-1].entry.name
        name = cell(first) if len(files) < 2 else f"{cell(first)} … {cell(last)} ({len(files)})"
        sizes = [file.entry.bytes for file in files]
        size = "?" if None in sizes else show_bytes(sum(n or 0 for n in sizes))
        made.add_row(cell(repo) if repo != before else "", name, size, _here(files))
        before = repo
    return made


def _alike(file: NeededFile) -> tuple[str, str]:
    """Layer files of an SAE that are all here, or all not, stand in one row."""
    entry = file.entry
    alone = layer_of(entry.name) is None or entry.partial
    return file.repo, entry.name if alone else f"layers {'here' if entry.have else 'to fetch'}"


def _here(files: Sequence[NeededFile]) -> str:
    entry = files[0].entry
    if entry.partial:
        return f"{100 * entry.partial / (entry.bytes or 1):.0f} %"
    return "yes" if entry.have else "no"


def _memory(planned: JobPlan) -> Table:
    budget = "" if planned.budget is None else f"; {show_bytes(planned.budget)} "
    budget += "" if not budget else "allowed" if planned.options.budget else "free"
    title = f"memory on {planned.options.device} in {planned.dtype}{budget}"
    made = table(title, "way", "in all", "mapped from files", "the rest", "", left=1)
    made.columns[-1].justify = "left"
    about = {"whole": "every layer and the head: what generating needs", "cut": "up to the last layer asked for",
             "streamed": "one block at a time over all prompts"}  # fmt: skip
    for mode, taken in footprints(planned.sizes).items() if planned.sizes else ():
        sizes = [show_bytes(n) for n in (taken.total, taken.file_backed, taken.anonymous)]
        made.add_row(f"{mode} *" if mode == planned.mode else mode, *sizes, about[mode])
    return made


def _work(planned: JobPlan, computing: float | None, rate: float | None) -> str:
    each = (planned.flop_per_token or 0) / 1e9
    if planned.gflop is None:
        measured = (
            f", {show_seconds(1e12 * each / rate)} for 1,000 at the measured rate" if rate else ""
        )
        return f"computing  {each:.3g} GFLOP a token{measured} (give SETS for the whole)"
    seconds = (
        f", {show_seconds(computing)} at the measured rate"
        if computing is not None
        else " (--measure: seconds)"
    )
    tokens = f"about {planned.options.tokens:,} tokens (bytes / {_BYTES_A_TOKEN})"
    return f"computing  {tokens} of {each:.3g} GFLOP: {planned.gflop:,.0f} GFLOP{seconds}"


def _tokens(sets: str) -> int:
    if is_run(sets):
        raise PromptError(
            f"{sets} is a run: asking it again needs no model, so there is nothing to plan"
        )
    prompts = [prompt for group in read_prompts(sets) for prompt in group.prompts]
    return sum(max(1, len(prompt.display_text.encode()) // _BYTES_A_TOKEN) for prompt in prompts)


def _measured(planned: JobPlan) -> float:
    note("measuring: this imports torch")
    from saescope.engine.matmul_kernels import matmul_rate

    return matmul_rate(planned.dtype, planned.options.device)


def _seconds(planned: JobPlan, limits: Limits, rate: float | None) -> tuple[float, float | None]:
    computing = planned.gflop * 1e9 / rate if rate and planned.gflop is not None else None
    return planned.download_bytes / parse_rate(limits.bandwidth), computing
