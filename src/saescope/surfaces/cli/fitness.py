"""`saescope fitness`: whether an SAE fits a model it was not trained on."""

from rich.console import Console

from saescope.analysis.fitness import Fitness, LayerFitness
from saescope.jobs.fitness import FitnessRequest
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import (
    TERMINAL,
    cell,
    masked_sentence,
    number,
    percent,
    present_answer,
    print_finding,
)
from saescope.surfaces.cli.tables import ResultTable


@command
def fitness(request: FitnessRequest = FitnessRequest(), *, output: Output = Output()) -> None:
    present_answer(request.run(TERMINAL), output, show_fitness)


def show_fitness(console: Console, result: Fitness) -> None:
    """Print a verdict and a row per layer, and what was masked."""
    for layer, figures in result.layers.items():
        print_finding(console, f"Layer {layer}: {figures.verdict}.")
    _figures(result).print(console)
    masked = {
        layer: (figures.masked_pos0, figures.masked_sinks)
        for layer, figures in result.layers.items()
    }
    print_line(console, masked_sentence(masked))


def _figures(result: Fitness) -> ResultTable:
    title = f"SAE {cell(result.sae)} on {cell(result.model)}"
    if not result.base:
        table = ResultTable(title, text=(), numbers=("layer", "FVU", "L0", "norm"))
    else:
        table = ResultTable(
            f"{title}, beside {cell(result.base)}",
            text=(),
            numbers=(
                *("layer", "FVU", "FVU on base", "L0", "L0 on base", "norm", "norm on base"),
                *("features shared", "top 5", "confirmed by both"),
            ),
            optional=("norm on base", "norm", "L0 on base", "top 5", "L0", "confirmed by both"),
        )
    for layer, figures in result.layers.items():
        cells = {
            "layer": str(layer),
            "FVU": number(figures.fvu, ".3g"),
            "FVU on base": number(figures.base_fvu, ".3g"),
            "L0": number(figures.l0, ".3g"),
            "L0 on base": number(figures.base_l0, ".3g"),
            "norm": number(figures.norm_median, ".3g"),
            "norm on base": number(figures.base_norm_median, ".3g"),
            "features shared": percent(figures.topk_jaccard),
            "top 5": percent(figures.top5_equal),
            "confirmed by both": _confirmed(figures),
        }
        table.add(*(cells[name] for name in table.columns))
    return table


def _confirmed(figures: LayerFitness) -> str:
    if figures.found_both is None:
        return "-"
    return f"{figures.found_both} of {figures.found_either}"
