"""`saescope steer`: what a model writes with and without edits, side by side."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table

from saescope.jobs.steer import OnText, Steering, SteerRequest
from saescope.surfaces.cli.consoles import escape
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import (
    TERMINAL,
    cell,
    note,
    percent,
    print_finding,
    print_json,
    print_result,
    stdout,
)
from saescope.surfaces.cli.tables import ResultTable
from saescope.surfaces.visible import visible

if TYPE_CHECKING:
    from saescope.control.receipts import Receipt

_INCOMPLETE = "\ufffd"  # the end of a text whose last character has only begun
# Changes of half the spread of residuals about their mean usually degrade the text.
DEGRADES_ABOVE = 0.5
_UNITS = {"spread": "the spread of residuals about their mean", "|residual|": "the residual"}


@command
def steer(request: SteerRequest, *, output: Output = Output()) -> None:
    if output.json:
        print_json(request.run(TERMINAL).to_dict())
        return
    with _live_columns() as on_text:
        steering = request.run(TERMINAL, on_text)
    print_result(lambda console: show_steering(console, steering))


@contextmanager
def _live_columns() -> Iterator[OnText]:
    """Show two columns of text that grow as tokens come, and take them away at the end."""
    texts = {"base": "", "steered": ""}
    console = stdout()
    live = Live(console=console, auto_refresh=False, transient=True)

    def on_text(column: Literal["base", "steered"], text: str) -> None:
        texts[column] = visible(text.rstrip(_INCOMPLETE))
        if console.is_terminal and not console.is_dumb_terminal:
            live.start()  # only now: a refused request prints no table
            live.update(columns(texts["base"], texts["steered"]), refresh=True)

    try:
        yield on_text
    finally:
        live.stop()


def columns(base: str, steered: str) -> Table:
    """Return two texts side by side, folded if they have no spaces, so that nothing is cut off."""
    table = Table(box=None, expand=True, padding=(0, 1), header_style="bold")
    for title in ("without", "with edits"):
        table.add_column(title, overflow="fold", ratio=1)
    table.add_row(escape(base), escape(steered))  # running text: its spaces stay spaces
    return table


def show_steering(console: Console, steering: Steering) -> None:
    """Print whether the text changed, both texts, and what the edits did to the residual."""
    receipt = steering.receipt
    size = receipt.size
    print_finding(console, _sentence(steering))
    console.print(columns(visible(steering.base), visible(steering.steered)))
    _edits(receipt).print(console)
    print_line(
        console,
        f"targeted {receipt.positions} positions in {receipt.steps} forward passes, changed "
        f"{receipt.changed}; change / {size.unit.strip('|')}: {percent(size.mean)} on average, "
        f"{percent(size.largest)} at most",
    )
    for layer, mean in receipt.means.items():
        print_line(
            console,
            f"mean residual of layer {layer}: over {mean.positions:,} positions of {mean.source}, "
            f"{mean.norm:.4g} long; spread about it {mean.spread:.4g}",
        )
    if size.largest > DEGRADES_ABOVE:
        limit = percent(DEGRADES_ABOVE)
        note(f"changed over {limit} of {_UNITS[size.unit]}: generations usually degrade there")


def _sentence(steering: Steering) -> str:
    receipt = steering.receipt
    if not receipt.applied:
        return "Nothing was changed: no edited feature fired, or rounding lost what was added."
    if steering.base == steering.steered:
        return "Residuals were changed, the text was not."
    size = receipt.size
    unit = "its norm" if size.unit == "|residual|" else "its spread about the mean"
    share = percent(size.mean)
    return f"The text changes; the edits change the residual by {share} of {unit} on average."


def _edits(receipt: "Receipt") -> ResultTable:
    table = ResultTable(
        "",
        text=("edit",),
        numbers=("targeted", "fired on", "largest activation", "read-out gain", "direction norm"),
        optional=("direction norm", "read-out gain"),
    )
    for edit in receipt.to_dict()["edits"]:
        table.add(
            cell(_describe(edit)),
            str(edit["meant"]),
            str(edit["fired"]),
            f"{edit['largest_act']:.3g}{_share_of_activation(edit)}",
            f"{edit['readout_gain']:.3g}",
            f"{edit['direction_norm']:.3g}",
        )
    return table


def _describe(edit: Mapping[str, Any]) -> str:
    text = f"{edit['edit']} {edit['op']} {edit['strength']:g} {edit['gate']} {edit['scope']}"
    if edit["about"]:
        text += f" about {edit['about']}"
    if not edit["when"]:
        return text
    return f"{text} when {edit['when']} (met on {edit['held']})"


def _share_of_activation(edit: Mapping[str, Any]) -> str:
    """Compare a strength in units of activation with the largest activation seen."""
    in_activations = edit["op"] in ("add", "clamp", "readout_clamp")
    if not in_activations or edit["largest_act"] <= 0:
        return ""
    return f" (strength {edit['strength'] / edit['largest_act']:.2g} of it)"
