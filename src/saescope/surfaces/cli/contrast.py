"""`saescope contrast`: features that distinguish prompt sets."""

from rich.console import Console

from saescope.analysis.contrast import Contrast, FeatureContrast, LayerContrast
from saescope.analysis.ranking import why_ranks_differ
from saescope.analysis.sentences import contrast_sentence
from saescope.jobs.contrast import ContrastRequest
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import (
    TERMINAL,
    cell,
    interval,
    p_value,
    percent,
    present_answer,
    print_finding,
    print_sae_fits,
    print_warnings,
)
from saescope.surfaces.cli.tables import ResultTable


@command
def contrast(request: ContrastRequest = ContrastRequest(), *, output: Output = Output()) -> None:
    present_answer(request.run(TERMINAL), output, show_contrast)


def show_contrast(console: Console, result: Contrast, n_top: int | None = None) -> None:
    """Print the finding, one table per layer, what was masked and the control."""
    print_sae_fits(console, result.sae_fits, result.run)
    print_finding(console, contrast_sentence(result))
    for layer, found in result.layers.items():
        _features(layer, found, n_top).print(console)
        print_line(
            console,
            f"left out: {found.masked_pos0} first positions, {found.masked_sinks} sinks. "
            f"Tested: {found.tested} features. Control: {found.shuffled_confirmed} confirmed "
            f"in {result.settings.shuffles} searches with shuffled labels.",
        )
    sentence = next(filter(None, map(_why_detect_differs, result.layers.values())), None)
    if sentence:
        print_line(console, cell(sentence))
    print_warnings(console, result.warnings)


def _why_detect_differs(found: LayerContrast) -> str | None:
    """Say why `detect` puts another feature first, of the first set where it does."""
    for name, in_set in found.sets.items():
        confirmed = [feature for feature in in_set.features[:1] if feature.confirmed]
        for feature in confirmed:
            sentence = why_ranks_differ(name, feature.feature, in_set.first_by_prompts)
            if sentence:
                return sentence
    return None


def _features(layer: int, found: LayerContrast, n_top: int | None) -> ResultTable:
    """Every set's best features with their evidence."""
    table = ResultTable(
        f"features that distinguish the sets, layer {layer}",
        text=("set", "feature"),
        numbers=("fires / elsewhere", "held out", "prompts, 95 % CI", "confirmed"),
        after=("next set",),
        optional=("prompts, 95 % CI", "next set", "fires / elsewhere"),
    )
    for name, in_set in found.sets.items():
        label = cell(name)
        for feature in in_set.shown(n_top):
            table.add(label, *_cells(feature))
            label = ""
        table.end_section()
    return table


def _cells(feature: FeatureContrast) -> list[str]:
    confirmed = "no"
    if feature.confirmed:
        confirmed = f"[green]q {p_value(feature.holdout_q)}[/]"
    return [
        str(feature.feature),
        f"{100 * feature.rate:.1f} / {percent(feature.other_rate)}",
        f"{100 * feature.holdout_rate:.1f} / {percent(feature.holdout_other_rate)}",
        f"{100 * feature.prompt_rate:.0f} ({interval(feature.ci)})",
        confirmed,
        cell(feature.other_set),
    ]
