"""`saescope layers`: where sets separate best, and which feature a concept is at each depth."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from saescope.analysis.contrast import ContrastSettings
from saescope.analysis.layers import Layers, Match
from saescope.analysis.layers import layers as layers_of
from saescope.errors import SourceError
from saescope.sources.catalog import Feature
from saescope.sources.prompts import DEFAULT_BUNDLE
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.surfaces.cli.inputs import Inputs, Masks, is_run, obtain_run, parse_layers
from saescope.surfaces.cli.show import cell, left_out, note, percent, present, table

_ACROSS = 8


def layers(
    sets: str = DEFAULT_BUNDLE,
    /,
    *,
    feature: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    inputs: Inputs = Inputs(),  # noqa: B008 (frozen)
    masks: Masks = Masks(),  # noqa: B008 (frozen)
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Ask the same question at every layer: how well sets separate there, by which feature, and how it is found again.

    Parameters
    ----------
    sets
        Prompt sets, as for contrast, or a run made before. All layers are taken where --layers does not say which.
    feature
        Follow this feature, as 17/23991, and show its id's rate at every layer; each set's best when left out.
    seed
        Decides which prompts are held out, and the bootstrap.
    out
        Directory for the run; runs/NAME-HASH when left out.
    json
        Print one JSON document instead of tables.
    """
    masking, followed = masks.masking(), Feature.parse(feature) if feature else None
    wanted = None if inputs.layers in (None, "all") else parse_layers(inputs.layers)
    options = {
        "masking": asdict(masking),
        "seed": seed,
        "feature": str(followed) if followed else None,
        "layers": wanted,
        "offline": inputs.offline,
    }
    every = inputs if is_run(sets) or inputs.layers else replace(inputs, layers="all")
    run = obtain_run(sets, every, out, {"verb": "layers", "options": options}, compared=masking)
    present(run, answer(run, options), show_layers, json=json)


def answer(run: Run, options: Mapping[str, Any]) -> Layers:
    """What the command asks of a run; without cosines where its SAEs cannot be opened any more."""
    from saescope.engine.decoders import decoder_cosines

    settings = ContrastSettings(seed=options["seed"], masking=Masking(**options["masking"]))
    feature = Feature.parse(options["feature"]) if options["feature"] else None
    cosines = decoder_cosines(run, offline=options["offline"])
    try:
        return layers_of(run, settings, feature=feature, cosines=cosines, layers=options["layers"])
    except SourceError as error:
        note(f"matched by co-firing alone: {error}")
        return layers_of(run, settings, feature=feature, layers=options["layers"])


def show_layers(console: Console, result: Layers) -> None:
    """Separation and best features by layer, one id's rates, and the matches."""
    names = list(next(iter(result.layers.values())).sets)
    best = table(
        "best features by layer: held out, elsewhere",
        "layer",
        "separation, 95 % CI",
        *map(cell, names[:_ACROSS]),
    )
    for layer, one in result.layers.items():
        mark = " best" if layer == result.best else " as good" if one.as_good else ""
        cells = [
            f"{f.feature} {100 * f.holdout_rate:.0f} / {100 * f.holdout_other_rate:.0f}"
            for f in one.sets.values()
        ]
        best.add_row(
            str(layer),
            f"{one.separation:.2f} ({one.ci[0]:.2f}-{one.ci[1]:.2f}){mark}",
            *cells[:_ACROSS],
        )
    console.print(best)
    if len(names) > _ACROSS:
        console.print(
            f"{len(names) - _ACROSS} more sets are in --json: {cell(', '.join(names[_ACROSS:]))}"
        )
    if result.feature is not None:
        title = f"how often id {result.feature.feature.id} fires at each layer: an id means something else in each"
        made = table(title, "layer", *map(cell, names[:_ACROSS]))
        for layer, by_set in result.feature.rates.items():
            made.add_row(str(layer), *(percent(by_set[name]) for name in names[:_ACROSS]))
        console.print(made)
    _show_matches(console, result.matches)
    console.print(left_out(result.masked))


def _show_matches(console: Console, matches: list[Match]) -> None:
    made = table(
        "followed from layer to layer",
        "feature",
        "from",
        "to",
        "co-firing",
        "with the first",
        "cosine",
        left=3,
    )
    last = None
    for match in matches:
        cosine = "-" if match.cosine is None else f"{match.cosine:.2f}"
        shares = [percent(match.cofire), percent(match.cofire_origin)]
        origin = str(match.origin) if match.origin != last else ""
        made.add_row(origin, str(match.source), str(match.target), *shares, cosine)
        last = match.origin
    console.print(made)
