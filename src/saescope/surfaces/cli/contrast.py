"""`saescope contrast`: features that set prompt sets apart."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from saescope.analysis.contrast import Contrast, ContrastSettings, FeatureContrast
from saescope.analysis.contrast import contrast as contrast_run
from saescope.sources.prompts import DEFAULT_BUNDLE
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.surfaces.cli.inputs import Inputs, Masks, obtain_run, parse_layers
from saescope.surfaces.cli.show import percent, present, table

_COLUMNS = ("set", "feature", "fires / elsewhere", "held out", "prompts, 95 % CI", "confirmed")


def contrast(
    sets: str = DEFAULT_BUNDLE,
    /,
    *,
    n_top: int = 10,
    alpha: float = 0.05,
    shuffles: int = 20,
    seed: int = 0,
    out: Path | None = None,
    inputs: Inputs = Inputs(),  # noqa: B008 (frozen)
    masks: Masks = Masks(),  # noqa: B008 (frozen)
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Find features that set prompt sets apart, and confirm them on held-out prompts.

    Parameters
    ----------
    sets
        Prompt sets: a folder of NAME.txt or NAME.jsonl, one .jsonl, .csv or .parquet with a `set` column, or a run
        made before (no model is needed then). The bundled languages when left out.
    n_top
        Features to show for a set.
    alpha
        False discovery rate of finding, and of confirming.
    shuffles
        How often the control repeats the search with shuffled labels.
    seed
        Decides which prompts are held out, and the shuffles.
    out
        Directory for the run; runs/NAME-HASH when left out.
    json
        Print one JSON document instead of tables.
    """
    settings = ContrastSettings(
        alpha=alpha, n_top=n_top, shuffles=shuffles, seed=seed, masking=masks.masking()
    )
    settings.check()
    wanted = None if inputs.layers == "all" else parse_layers(inputs.layers)
    options = {"settings": asdict(settings), "layers": wanted}
    run = obtain_run(
        sets, inputs, out, {"verb": "contrast", "options": options}, compared=settings.masking
    )
    present(run, answer(run, options), show_contrast, json=json)


def answer(run: Run, options: Mapping[str, Any]) -> Contrast:
    """What the command asks of a run."""
    settings = dict(options["settings"])
    return contrast_run(
        run,
        ContrastSettings(**{**settings, "masking": Masking(**settings["masking"])}),
        layers=options["layers"],
    )


def show_contrast(console: Console, result: Contrast, n_top: int | None = None) -> None:
    """One table a layer: every set's best features with their evidence, then what was masked and the control."""
    for layer, found in result.layers.items():
        made = table(f"features that set the sets apart, layer {layer}", *_COLUMNS, left=2)
        for name, one in found.sets.items():
            for n, feature in enumerate(one.features[:n_top]):
                made.add_row(
                    name if n == 0 else "",
                    *_cells(feature),
                    end_section=n == len(one.features[:n_top]) - 1,
                )
        console.print(made)
        console.print(
            f"left out: {found.masked_pos0} first positions, {found.masked_sinks} sinks. "
            f"Tested: {found.tested} features. Control: {found.shuffled_confirmed} confirmed "
            f"in {result.settings.shuffles} searches with shuffled labels."
        )
    for line in result.warnings:
        console.print(f"[yellow]warning:[/] {line}")


def _cells(f: FeatureContrast) -> list[str]:
    return [
        str(f.feature),
        f"{100 * f.rate:.1f} / {percent(f.other_rate)} {f.other_set}",
        f"{100 * f.holdout_rate:.1f} / {percent(f.holdout_other_rate)}",
        f"{100 * f.prompt_rate:.0f} ({100 * f.ci[0]:.0f}-{100 * f.ci[1]:.0f})",
        f"[green]q {f.q:.0e}[/]" if f.confirmed else "no",
    ]
