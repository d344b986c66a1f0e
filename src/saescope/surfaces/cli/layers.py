"""`saescope layers`: where sets separate best, and which feature a concept is at each layer."""

from collections.abc import Sequence

from rich.console import Console

from saescope.analysis.follow import Match
from saescope.analysis.layers import FollowedFeature, Layers, LayerSeparation
from saescope.analysis.sentences import layers_sentence
from saescope.jobs.layers import LayersRequest
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
    print_sae_fits,
)
from saescope.surfaces.cli.tables import ResultTable

_SETS_SHOWN = 8


@command
def layers(request: LayersRequest = LayersRequest(), *, output: Output = Output()) -> None:
    present_answer(request.run(TERMINAL), output, show_layers)


def show_layers(console: Console, result: Layers) -> None:
    """Print the best layer, best features by layer, the rates of a followed id, and the matches."""
    print_sae_fits(console, result.sae_fits, result.run)
    print_finding(console, layers_sentence(result))
    first_layer = next(iter(result.layers.values()))
    names = list(first_layer.headlines)
    shown, hidden = names[:_SETS_SHOWN], names[_SETS_SHOWN:]
    _best_features(result, shown).print(console)
    if not all(best.confirmed for one in result.layers.values() for best in one.sets.values()):
        print_line(console, "? not confirmed on held-out prompts")
    if hidden:
        print_line(console, f"{len(hidden)} more sets are in --json: {cell(', '.join(hidden))}")
    if result.feature is not None:
        _rates(result.feature, shown).print(console)
    if result.matches:
        _matches(result.matches).print(console)
    print_line(console, masked_sentence(result.masked))


def _best_features(result: Layers, names: Sequence[str]) -> ResultTable:
    columns = [cell(name) for name in names]
    table = ResultTable(
        "best features by layer: held out / elsewhere, in percent",
        text=("layer",),
        numbers=("separation, 95 % CI", *columns),
        optional=columns[::-1],
    )
    for layer, figures in result.layers.items():
        low, high = figures.ci
        cells = []
        for name in names:
            best = figures.sets.get(name)
            if best is None:
                cells.append("none fires")
                continue
            rate, other_rate = 100 * best.holdout_rate, 100 * best.holdout_other_rate
            doubt = "" if best.confirmed else "?"
            cells.append(f"{best.feature}{doubt} {rate:.0f} / {other_rate:.0f}")
        label = f"{layer}{_mark(layer, figures, result.best)}"
        table.add(label, f"{figures.separation:.2f} ({low:.2f}-{high:.2f})", *cells)
    return table


def _mark(layer: int, figures: LayerSeparation, best: int | None) -> str:
    if layer == best:
        return " best"
    return " as good" if figures.as_good else ""


def _rates(followed: FollowedFeature, names: Sequence[str]) -> ResultTable:
    columns = [cell(name) for name in names]
    table = ResultTable(
        f"how often id {followed.feature.id} fires at each layer: an id is another feature in each",
        text=("layer",),
        numbers=columns,
        optional=columns[::-1],
    )
    for layer, by_set in followed.rates.items():
        table.add(str(layer), *(percent(by_set[name]) for name in names))
    return table


def _matches(matches: Sequence[Match]) -> ResultTable:
    table = ResultTable(
        "followed from layer to layer",
        text=("feature", "from", "to"),
        numbers=("co-firing", "with the first", "cosine"),
    )
    previous = None
    for match in matches:
        origin = "" if match.origin == previous else str(match.origin)
        table.add(
            origin,
            str(match.source),
            str(match.target),
            percent(match.cofire),
            percent(match.cofire_origin),
            number(match.cosine, ".2f"),
        )
        previous = match.origin
    return table
