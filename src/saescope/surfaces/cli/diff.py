"""`saescope diff`: what changed between two checkpoints, by tensor, and where along a direction."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from saescope.control.edits import EditSet
from saescope.surfaces.cli.editing import Edits, inputs_for, saes_for
from saescope.surfaces.cli.inputs import Inputs
from saescope.surfaces.cli.show import cell, note, percent, print_json, progress, stdout, table

if TYPE_CHECKING:
    from saescope.control.diff_result import Diff, TensorChange


def diff(
    a: str,
    b: str,
    /,
    *,
    given: Edits = Edits(),  # noqa: B008 (frozen)
    n_top: int = 20,
    inputs: Inputs = Inputs(),  # noqa: B008
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Compare two checkpoints tensor by tensor; with edits, say how much of each change lies along their directions.

    Parameters
    ----------
    a
        A folder or a hub id.
    b
        Another.
    n_top
        Tensors to show, the most changed ones; all with --json.
    json
        Print one JSON document instead of a table.
    """
    directions = _directions(given.wanted(), inputs) if given else []
    from saescope.control.diff import diff as compare

    with progress("compare", "tensors") as advance:
        result = compare(a, b, directions, offline=inputs.offline, progress=advance)
    if json:
        print_json(result.to_dict())
    else:
        show_diff(stdout(), result, n_top)


def _directions(wanted: EditSet, inputs: Inputs) -> list[Any]:
    saes = saes_for(wanted, inputs_for(wanted, inputs))
    from saescope.control.formulae import bind_edits

    of = {sae.spec.layer: sae for sae in saes}
    return [
        bind_edits([one], of.get(one.layer) if one.feature is not None else None).d[0]
        for one in wanted.edits
    ]


def show_diff(console: Console, result: "Diff", n_top: int) -> None:
    """The most changed tensors, those that only one has, and a sentence."""
    asked = any(one.written is not None or one.read is not None for one in result.tensors)
    columns = [
        "tensor",
        "dtype",
        "change",
        "largest",
        "rank 1",
        *(["written", "read"] if asked else []),
    ]
    made = table(f"A: {cell(result.a)}   B: {cell(result.b)}", *columns, left=2)
    ordered = sorted(
        result.tensors, key=lambda one: (one.status != "changed", -(one.relative or 0.0))
    )
    for one in ordered[:n_top]:
        made.add_row(*_cells(one, asked))
    if result.tensors:
        console.print(made)
    if len(ordered) > n_top:
        console.print(f"and {len(ordered) - n_top} more: --n-top, or --json for all")
    console.print(result.verdict)
    for line in result.notes:
        note(line)


def _cells(one: "TensorChange", asked: bool) -> list[str]:
    if one.status != "changed":
        words = one.status + (f": {one.note}" if one.note else "")
        return [cell(one.name), one.dtype, words, "", "", *(["", ""] if asked else [])]
    change = "-" if one.relative is None else percent(one.relative)
    largest = "-" if one.largest is None else f"{one.largest:.2g}"
    shares = [one.rank1, *([one.written, one.read] if asked else [])]
    return [
        cell(one.name),
        one.dtype,
        change,
        largest,
        *("-" if s is None else percent(s) for s in shares),
    ]
