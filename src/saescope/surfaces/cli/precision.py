"""`saescope precision`: the same job in two dtypes or on two devices, compared token by token."""

from rich.console import Console

from saescope.analysis.agreement import Agreement
from saescope.jobs.precision import PrecisionRequest
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import TERMINAL, cell, percent, present_answer, print_finding
from saescope.surfaces.cli.tables import ResultTable


@command
def precision(request: PrecisionRequest = PrecisionRequest(), *, output: Output = Output()) -> None:
    present_answer(request.run(TERMINAL), output, show_agreement)


def show_agreement(console: Console, result: Agreement) -> None:
    """Print a verdict and a row per layer, then the worst prompt of each."""
    for layer, verdict in result.verdicts.items():
        print_finding(console, f"Layer {layer}: {verdict}.")
    table = ResultTable(
        f"{cell(result.what_b)} judged by {cell(result.what_a)}",
        text=(),
        numbers=(
            "layer",
            "top 1",
            "top 5",
            "top k",
            "of k shared",
            "activation",
            "residual",
            "ties",
            "ties in bfloat16",
            "confirmed by both",
        ),
        optional=("ties", "ties in bfloat16", "top 1", "activation", "residual", "top k"),
    )
    for layer, figures in result.layers.items():
        table.add(
            str(layer),
            percent(figures.top1_equal),
            percent(figures.top5_equal),
            percent(figures.topk_equal),
            percent(figures.topk_jaccard),
            f"{100 * figures.act_rel_diff:.2g} %",
            f"{100 * figures.resid_rel_diff:.2g} %",
            percent(figures.ties),
            percent(figures.ties_bfloat16),
            f"{figures.found_both} of {figures.found_either}",
        )
    table.print(console)
    print_line(
        console,
        "top 1, 5, k: share of tokens with the same features there. activation, residual: median "
        "relative difference. ties: share of tokens whose k-th and next pre-activation are equal.",
    )
    for layer, figures in result.layers.items():
        worst = figures.worst[0]
        print_line(
            console,
            f"layer {layer}: worst prompt: {cell(worst.id)} "
            f"({percent(worst.topk_jaccard)} of its features shared). Left out: "
            f"{figures.masked_pos0} first positions, {figures.masked_sinks} sinks.",
        )
