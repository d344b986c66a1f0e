"""`saescope fitness`: whether an SAE fits a model it was not trained on."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from saescope.analysis.fitness import Fitness
from saescope.analysis.fitness import fitness as fitness_of
from saescope.errors import SourceError
from saescope.sources.prompts import DEFAULT_BUNDLE
from saescope.store.runs import Run
from saescope.surfaces.cli.inputs import EXTRACT, Inputs, is_run, obtain_run
from saescope.surfaces.cli.show import percent, present, table


def fitness(
    sets: str = DEFAULT_BUNDLE,
    /,
    *,
    base: str | None = None,
    out: Path | None = None,
    inputs: Inputs = Inputs(),  # noqa: B008 (frozen)
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Say how well an SAE fits this model: variance explained, features a token, and agreement with its own model.

    Parameters
    ----------
    sets
        Prompt sets, as for contrast, or a run that this command made before.
    base
        The model the SAE was trained on, to compare with: a folder or a hub id, or a run of this command.
    out
        Directory for the runs; runs/NAME-HASH each when left out.
    json
        Print one JSON document instead of a table.
    """
    options: dict[str, Any] = {}
    if base is not None and is_run(base):
        options["base"] = str(Path(base).resolve())
    elif base is not None:
        if inputs.sae is None:
            raise SourceError("--base names the model that --sae was trained on: give --sae too")
        place = out / "base" if out else None
        other = obtain_run(sets, replace(inputs, model=base), place, EXTRACT, errors=True)
        options["base"] = str(other.path.resolve())
    command = {"verb": "fitness", "options": options}
    run = obtain_run(sets, inputs, out / "model" if out else None, command, errors=True)
    present(run, answer(run, options), show_fitness, json=json)


def answer(run: Run, options: Mapping[str, Any]) -> Fitness:
    """What the command asks of a run."""
    return fitness_of(run, Run.open(options["base"]) if "base" in options else None)


def show_fitness(console: Console, result: Fitness) -> None:
    """One row a layer and a verdict a layer."""
    title = f"SAE {result.sae} on {result.model}" + (
        f", beside {result.base}" if result.base else ""
    )
    made = table(
        title,
        "layer",
        "FVU",
        "on base",
        "L0",
        "on base",
        "norm",
        "on base",
        "features shared",
        "top 5",
        "found",
    )
    for layer, one in result.layers.items():
        found = "-" if one.found_both is None else f"{one.found_both} of {one.found_either}"
        pairs = [
            (one.fvu, one.base_fvu),
            (one.l0, one.base_l0),
            (one.norm_median, one.base_norm_median),
        ]
        values = ["-" if value is None else f"{value:.3g}" for pair in pairs for value in pair]
        shares = [
            "-" if share is None else percent(share) for share in (one.topk_jaccard, one.top5_equal)
        ]
        made.add_row(str(layer), *values, *shares, found)
    console.print(made)
    for layer, one in result.layers.items():
        left_out = f"Left out: {one.masked_pos0} first positions, {one.masked_sinks} sinks."
        console.print(f"layer {layer}: {one.verdict}. {left_out}")
