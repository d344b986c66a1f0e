"""`saescope plan`: what a job would download, keep on disk and hold in memory."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from saescope.jobs.inputs import BYTES_PER_TOKEN
from saescope.jobs.plan import Estimate, PlanRequest
from saescope.sources.budget import footprints
from saescope.sources.catalog import layer_of
from saescope.sources.job_plan import JobPlan, NeededFile
from saescope.sources.machine import show_bytes, show_seconds
from saescope.sources.saes import ranges
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.naming import as_typed
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import TERMINAL, cell, present, print_finding
from saescope.surfaces.cli.tables import ResultTable
from saescope.surfaces.visible import visible

_WAYS_TO_RUN = {
    "whole": "all layers and head",
    "cut": "up to the last layer",
    "streamed": "one block at a time",
}


@command
def plan(request: PlanRequest = PlanRequest(), *, output: Output = Output()) -> int:
    estimate = request.run(TERMINAL)
    present(estimate, output, lambda console: show_plan(console, estimate))
    return 0 if estimate.plan.fits else 1


def show_plan(console: Console, estimate: Estimate) -> None:
    """Print whether it fits, the files, the ways to run with their memory, and the work."""
    plan = estimate.plan
    print_finding(console, _sentence(plan))
    for reason in plan.why:
        _line(console, f"  {reason}")
    for alternative in plan.instead:
        _line(console, f"  instead: {alternative}")
    _files(plan).print(console)
    _line(
        console,
        f"to fetch   {show_bytes(plan.download_bytes)} of {show_bytes(plan.disk_bytes)}: "
        f"{show_seconds(estimate.download_seconds)} at {estimate.bandwidth}; "
        f"{show_bytes(plan.disk_free)} free at {plan.download_folder}",
    )
    if plan.sizes is not None:
        _memory(plan).print(console)
    if plan.flop_per_token is not None:
        _line(console, f"computing  {_work(estimate, plan.flop_per_token)}")
    for reason in plan.unknown:
        _line(console, f"not known: {reason}")


def _sentence(plan: JobPlan) -> str:
    """Say whether the job fits, and what it needs."""
    needs = f"To fetch: {show_bytes(plan.download_bytes)}"
    if plan.sizes is not None and plan.mode is not None:
        needs += f"; memory: {show_bytes(footprints(plan.sizes)[plan.mode].total)}"
    return f"It {'fits' if plan.fits else 'does not fit'}. {needs}."


def _line(console: Console, text: str) -> None:
    print_line(console, Text(visible(as_typed(text))))


def _files(plan: JobPlan) -> ResultTable:
    noun = "layers" if len(plan.layers) > 1 else "layer"
    table = ResultTable(
        f"files, {noun} {ranges(plan.layers)}", text=("from", "file"), numbers=("size", "here")
    )
    previous = None
    for (repo, _), group in groupby(plan.needed, key=_row_key):
        files = list(group)
        label = "" if repo == previous else cell(repo)
        table.add(label, _file_names(files), _total_size(files), _presence(files[0]))
        previous = repo
    return table


def _row_key(file: NeededFile) -> tuple[str, str]:
    """Group an SAE's layer files that are all here, or all missing, into one row."""
    entry = file.entry
    if layer_of(entry.name) is None or entry.partial:
        return file.repo, entry.name
    return file.repo, f"layers, here: {entry.have}"


def _file_names(files: Sequence[NeededFile]) -> str:
    first, last = files[0].entry.name, files[-1].entry.name
    if len(files) == 1:
        return cell(first)
    return f"{cell(first)} … {cell(last)} ({len(files)})"


def _total_size(files: Sequence[NeededFile]) -> str:
    total = 0
    for file in files:
        if file.entry.bytes is None:
            return "?"
        total += file.entry.bytes
    return show_bytes(total)


def _presence(file: NeededFile) -> str:
    entry = file.entry
    if entry.partial:
        return f"{100 * entry.partial / (entry.bytes or 1):.0f} %"
    return "yes" if entry.have else "no"


def _memory(plan: JobPlan) -> ResultTable:
    table = ResultTable(
        f"memory on {plan.options.device} in {plan.dtype}{_budget_note(plan)}",
        text=("way to run", "computes"),
        numbers=("total", "mapped from files", "the rest"),
        optional=("computes",),
    )
    assert plan.sizes is not None
    for mode, footprint in footprints(plan.sizes).items():
        mark = " *" if mode == plan.mode else ""
        table.add(
            f"{mode}{mark}",
            _WAYS_TO_RUN[mode],
            show_bytes(footprint.total),
            show_bytes(footprint.file_backed),
            show_bytes(footprint.anonymous),
        )
    return table


def _budget_note(plan: JobPlan) -> str:
    if plan.budget is None:
        return ""
    source = "allowed" if plan.options.budget else "free"
    return f"; {show_bytes(plan.budget)} {source}"


def _work(estimate: Estimate, flop_per_token: float) -> str:
    plan, rate = estimate.plan, estimate.flop_per_s
    gflop_per_token = f"{flop_per_token / 1e9:.3g} GFLOP"
    if plan.gflop is None:
        measured = ""
        if rate:
            seconds = show_seconds(1000 * flop_per_token / rate)
            measured = f", {seconds} for 1,000 at the measured rate"
        return f"{gflop_per_token} per token{measured} (give SETS for the total)"
    duration = " (--measure: seconds)"
    if estimate.compute_seconds is not None:
        duration = f", {show_seconds(estimate.compute_seconds)} at the measured rate"
    tokens = f"about {plan.options.tokens:,} tokens (bytes / {BYTES_PER_TOKEN})"
    return f"{tokens} of {gflop_per_token}: {plan.gflop:,.0f} GFLOP{duration}"
