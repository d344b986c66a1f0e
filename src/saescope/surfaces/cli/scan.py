"""`saescope scan`: each token's strongest features."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from saescope.errors import PromptError
from saescope.sources.prompts import read_lines, texts
from saescope.surfaces.cli.inputs import Inputs, Masks
from saescope.surfaces.cli.show import cell, print_json, stdout, table

if TYPE_CHECKING:
    from saescope.engine.scan import Scan


def scan(
    *text: str,
    file: Path | None = None,
    n_top: int = 5,
    inputs: Inputs = Inputs(),  # noqa: B008 (frozen)
    masks: Masks = Masks(),  # noqa: B008 (frozen)
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Show each token's strongest features.

    Parameters
    ----------
    text
        Prompts.
    file
        A text file, a prompt a line, instead of or after the prompts given.
    n_top
        Features to show for a token.
    json
        Print one JSON document instead of tables.
    """
    lines = [*text, *(read_lines(file) if file else [])]
    if not lines:
        raise PromptError("nothing to scan: give prompts, or --file with a prompt a line")
    if any(not line.strip() for line in lines):
        raise PromptError("a prompt to scan is empty: give some text")
    masking = masks.masking()
    lm, saes = inputs.load()
    from saescope.engine.scan import scan as scan_prompts

    prompts = texts(lines)[0].prompts
    scanned = scan_prompts(
        lm, saes, prompts, n_top=n_top, masking=masking, batch_tokens=inputs.batch_tokens
    )
    if json:
        print_json(scanned.to_dict())
    else:
        show_scan(stdout(), scanned)


def show_scan(console: Console, scanned: "Scan") -> None:
    """A table for every prompt and layer; `*` marks sinks."""
    for prompt in scanned.prompts:
        for layer in prompt.tokens[0].norm:
            made = table(
                f"{cell(prompt.text)}   (layer {layer})",
                "pos",
                "token",
                "norm",
                "features: id activation",
                left=2,
            )
            made.columns[-1].justify = "left"
            for token in prompt.tokens:
                top = "  ".join(
                    f"{feature.id} [dim]{act:.4g}[/]" for feature, act in token.features[layer]
                )
                norm = f"{token.norm[layer]:.4g}{'*' if token.sink else ''}"
                made.add_row(str(token.pos), cell(token.token), norm, top)
            console.print(made)
    if any(token.sink for prompt in scanned.prompts for token in prompt.tokens):
        console.print(
            "* sink: its norm is far over the layer's median; its features are outside the SAE's training"
        )
