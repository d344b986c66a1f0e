"""`saescope fitness`: whether an SAE fits a model it was not trained on."""

from rich.console import Console

from saescope.analysis.fitness import Fitness
from saescope.jobs.fitness import FitnessRequest
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import TERMINAL, cell, number, percent, present_answer
from saescope.surfaces.cli.tables import ResultTable


@command
def fitness(request: FitnessRequest = FitnessRequest(), *, output: Output = Output()) -> None:
    present_answer(request.run(TERMINAL), output, show_fitness)


def show_fitness(console: Console, result: Fitness) -> None:
    """Print one row per layer and a verdict per layer."""
    title = f"SAE {cell(result.sae)} on {cell(result.model)}"
    if result.base:
        title = f"{title}, beside {cell(result.base)}"
    table = ResultTable(
        title,
        text=(),
        numbers=(
            "layer",
            "FVU",
            "on base",
            "L0",
            "L0 on base",
            "norm",
            "norm on base",
            "features shared",
            "top 5",
            "confirmed by both",
        ),
        optional=("norm on base", "norm", "top 5", "L0 on base"),
    )
    for layer, figures in result.layers.items():
        confirmed = "-"
        if figures.found_both is not None:
            confirmed = f"{figures.found_both} of {figures.found_either}"
        table.add(
            str(layer),
            number(figures.fvu, ".3g"),
            number(figures.base_fvu, ".3g"),
            number(figures.l0, ".3g"),
            number(figures.base_l0, ".3g"),
            number(figures.norm_median, ".3g"),
            number(figures.base_norm_median, ".3g"),
            percent(figures.topk_jaccard),
            percent(figures.top5_equal),
            confirmed,
        )
    table.print(console)
    for layer, figures in result.layers.items():
        console.print(
            f"layer {layer}: {figures.verdict}. Left out: {figures.masked_pos0} first positions, "
            f"{figures.masked_sinks} sinks."
        )
