"""`saescope scan`: each token's strongest features."""

from typing import TYPE_CHECKING

from rich.console import Console

from saescope.jobs.scan import ScanRequest
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import TERMINAL, cell, present, print_sae_fits
from saescope.surfaces.cli.tables import ResultTable

if TYPE_CHECKING:
    from saescope.engine.scan import Scan, ScannedPrompt


@command
def scan(request: ScanRequest = ScanRequest(), *, output: Output = Output()) -> None:
    scanned = request.run(TERMINAL)
    present(scanned, output, lambda console: show_scan(console, scanned))


def show_scan(console: Console, scanned: "Scan") -> None:
    """Print misfits, then one table per prompt and layer; `*` marks sinks."""
    print_sae_fits(console, scanned.sae_fits)
    for prompt in scanned.prompts:
        for layer in prompt.tokens[0].norm:
            _tokens(prompt, layer).print(console)
    tokens = [token for prompt in scanned.prompts for token in prompt.tokens]
    if any(token.sink for token in tokens):
        console.print(
            "* sink: a norm far above the layer's median; the SAE was not trained on such residuals"
        )


def _tokens(prompt: "ScannedPrompt", layer: int) -> ResultTable:
    n_features = max(len(token.features[layer]) for token in prompt.tokens)
    feature_columns = [f"{rank}: id act" for rank in range(1, n_features + 1)]
    table = ResultTable(
        f"{cell(prompt.text)}   (layer {layer})",
        text=("pos", "token", "norm", *feature_columns),
        optional=feature_columns[:0:-1],
    )
    for token in prompt.tokens:
        features = [f"{feature.id} [dim]{act:.4g}[/]" for feature, act in token.features[layer]]
        missing = [""] * (n_features - len(features))
        mark = "*" if token.sink else ""
        norm = f"{token.norm[layer]:.4g}{mark}"
        table.add(str(token.pos), cell(token.token), norm, *features, *missing)
    return table
