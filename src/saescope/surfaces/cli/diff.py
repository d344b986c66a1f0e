"""`saescope diff`: what changed between two checkpoints, by tensor, and where along a direction."""

from typing import TYPE_CHECKING

from rich.console import Console

from saescope.jobs.diff import DiffRequest
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import (
    TERMINAL,
    cell,
    note,
    number,
    percent,
    present,
    print_finding,
)
from saescope.surfaces.cli.tables import ResultTable

if TYPE_CHECKING:
    from saescope.control.diff_result import Diff, TensorChange


@command
def diff(request: DiffRequest, *, output: Output = Output()) -> None:
    result = request.run(TERMINAL)
    present(result, output, lambda console: show_diff(console, result, request.n_top))


def show_diff(console: Console, result: "Diff", n_top: int) -> None:
    """Print a sentence, the most changed tensors, and those that only one checkpoint has."""
    print_finding(console, result.verdict)
    ordered = sorted(result.tensors, key=_changed_most_first)
    if ordered:
        _tensors(result, ordered[:n_top]).print(console)
    if len(ordered) > n_top:
        print_line(console, f"and {len(ordered) - n_top} more: --n-top, or --json for all")
    for line in result.notes:
        note(line)


def _changed_most_first(tensor: "TensorChange") -> tuple[bool, float]:
    return tensor.status != "changed", -(tensor.relative or 0.0)


def _tensors(result: "Diff", tensors: "list[TensorChange]") -> ResultTable:
    table = ResultTable(
        f"A: {cell(result.a)}   B: {cell(result.b)}",
        text=("tensor", "dtype"),
        numbers=["change", "largest", "rank 1"],
        optional=("dtype", "largest"),
    )
    along = any(tensor.written is not None or tensor.read is not None for tensor in result.tensors)
    if along:
        table.numbers = [*table.numbers, "written", "read"]
    for tensor in tensors:
        cells = _cells(tensor)
        table.add(*cells[: len(table.columns)])
    return table


def _cells(tensor: "TensorChange") -> list[str]:
    if tensor.status != "changed":
        status = f"{tensor.status}: {tensor.note}" if tensor.note else tensor.status
        return [cell(tensor.name), cell(tensor.dtype), cell(status), "", "", "", ""]
    return [
        cell(tensor.name),
        cell(tensor.dtype),
        percent(tensor.relative),
        number(tensor.largest, ".2g"),
        percent(tensor.rank1),
        percent(tensor.written),
        percent(tensor.read),
    ]
