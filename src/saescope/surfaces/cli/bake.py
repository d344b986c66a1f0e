"""`saescope bake`: edits put into weights, labelled exact or approximate, and measured."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console

from saescope.jobs.bake import BakeRequest
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import TERMINAL, cell, note, percent, present, significant
from saescope.surfaces.cli.tables import ResultTable

if TYPE_CHECKING:
    from saescope.control.baking.bake_result import BakeResult


@command
def bake(request: BakeRequest, *, output: Output = Output()) -> None:
    result = request.run(TERMINAL)
    present(result, output, lambda console: show_bake(console, result))


def show_bake(console: Console, result: "BakeResult") -> None:
    """Print what was written, its label, and the distances."""
    why = "" if result.why_not is None else f": {result.why_not}"
    out = cell(str(result.out))
    print_line(console, f"[bold]{out}: {result.method}, {result.label}{cell(why)}[/]")
    if result.kl_hook_baked is not None:
        _distances(result).print(console)
    for line in _proofs(result):
        print_line(console, cell(line))
    worst = result.worst_rounding
    if worst is not None:
        mean = sum(rounding.fraction_lost for rounding in result.rounding) / len(result.rounding)
        print_line(
            console,
            f"{len(result.rounding)} tensors changed; rounding lost {percent(mean)} of the change "
            f"along the direction, {percent(worst.fraction_lost)} in the worst "
            f"({cell(worst.tensor)})",
        )
    for line in result.notes:
        note(line)


def _proofs(result: "BakeResult") -> Iterator[str]:
    """Yield what the hook itself does, and what transformers says of the folder."""
    if result.kl_base_hook is not None:
        yield f"the hook itself changes the model by {result.kl_base_hook.mean:.2g} nats per token"
    judged = result.judged_by_transformers
    if judged is not None:
        yield (
            f"judged by transformers ({judged.model_class}): {judged.kl_base_baked:.2g} nats per "
            f"token from the model on {judged.tokens} tokens, read here as "
            f"{judged.own_kl_base_baked:.2g}"
        )
    if result.not_judged is not None:
        yield f"not judged by transformers: {result.not_judged}"


def _distances(result: "BakeResult") -> ResultTable:
    names = {
        "hook": result.hook,
        "steered": "the edits as steered",
        "base": "the model without edits",
    }
    table = ResultTable(
        "KL to the written checkpoint on neutral text, nats per token",
        text=("from",),
        numbers=("mean", "p95", "p99", "flips"),
    )
    for row in result.rows():
        table.add(
            cell(names[row["compared with"]]),
            significant(row["mean"], 2),
            significant(row["p95"], 2),
            significant(row["p99"], 2),
            percent(row["flips"]),
        )
    return table
