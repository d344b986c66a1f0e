"""`saescope scan`: each token's strongest features."""

from typing import TYPE_CHECKING

from rich.console import Console

from saescope.jobs.scan import ScanRequest
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import (
    TERMINAL,
    cell,
    present,
    print_finding,
    print_parts_note,
    print_sae_fits,
    significant,
    token_cell,
)
from saescope.surfaces.cli.tables import ResultTable

if TYPE_CHECKING:
    from saescope.engine.scan import Scan, ScannedPrompt


@command
def scan(request: ScanRequest = ScanRequest(), *, output: Output = Output()) -> None:
    scanned = request.run(TERMINAL)
    present(scanned, output, lambda console: show_scan(console, scanned))


def show_scan(console: Console, scanned: "Scan") -> None:
    """Print misfits, the strongest feature, one table per prompt and layer; `*` marks sinks."""
    print_sae_fits(console, scanned.sae_fits)
    print_finding(console, _strongest_sentence(scanned))
    for prompt in scanned.prompts:
        for layer in prompt.tokens[0].norm:
            _tokens(prompt, layer).print(console)
    tokens = [token for prompt in scanned.prompts for token in prompt.tokens]
    if any(token.sink for token in tokens):
        print_line(
            console,
            "* sink: a norm far above the layer's median; the SAE was not trained on such "
            "residuals",
        )
    print_parts_note(console, (token.token for token in tokens))


def _strongest_sentence(scanned: "Scan") -> str:
    """Say which feature is the strongest, position 0 and sinks apart."""
    later = [
        (act, feature, token)
        for prompt in scanned.prompts
        for token in prompt.tokens
        if token.pos and not token.sink
        for top in token.features.values()
        for feature, act in top
    ]
    if not later:
        return "No feature fires after position 0."
    act, feature, token = max(later, key=lambda found: found[0])
    where = f"on “{token.token}” (position {token.pos})" if token.token else f"at {token.pos}"
    return f"The strongest feature is {feature}, {significant(act)} {where}."


def _tokens(prompt: "ScannedPrompt", layer: int) -> ResultTable:
    n_features = max(len(token.features[layer]) for token in prompt.tokens)
    feature_columns = [f"{rank}: id act" for rank in range(1, n_features + 1)]
    table = ResultTable(
        f"{cell(prompt.text)}   (layer {layer})",
        text=("pos", "token"),
        numbers=("norm", *feature_columns),
        optional=(*feature_columns[:0:-1], "norm"),
    )
    pos_width = len(str(prompt.tokens[-1].pos))
    for token in prompt.tokens:
        features = [
            f"{feature.id} [dim]{significant(act):>4}[/]" for feature, act in token.features[layer]
        ]
        missing = [""] * (n_features - len(features))
        mark = "*" if token.sink else ""
        norm = f"{significant(token.norm[layer], 4)}{mark}"
        pos = f"{token.pos:>{pos_width}}"
        table.add(pos, token_cell(token.token), norm, *features, *missing)
    return table
