"""How results look: JSON or tables on stdout, progress and notes on stderr."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, final, runtime_checkable

from rich.console import Console
from rich.markup import escape

from saescope.jobs.reporter import Reporter
from saescope.jobs.runs import Answer
from saescope.store.sae_fit import SaeFits
from saescope.strict_json import to_json
from saescope.surfaces.cli.options import Output
from saescope.surfaces.cli.progress import show_progress
from saescope.surfaces.visible import visible
from saescope.table import Table

_WIDTH_OF_PIPES = 160
Result = TypeVar("Result", bound=Table)


@runtime_checkable
class Printable(Protocol):
    """A result that has a JSON form."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON values."""


@final
class _ResultConsole(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the caller: rich would exit as failed when `head` has read enough."""
        raise BrokenPipeError


def stdout() -> Console:
    """Return the console for results. Pipes and files get a wide one, so that cells stay whole."""
    console = _ResultConsole(highlight=False)
    if console.is_terminal:
        return console
    return _ResultConsole(highlight=False, width=_WIDTH_OF_PIPES)


def note(text: str) -> None:
    """Print one line for the person, not for the program that reads stdout."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, style="dim", markup=False)


@final
class _Terminal:
    def note(self, text: str) -> None:
        """Print the note on stderr."""
        note(text)

    def progress(self, label: str, unit: str = "tokens", task: str = "") -> Any:
        """Show a bar on stderr, or lines where it is no terminal."""
        return show_progress(label, unit, task, note)


TERMINAL: Reporter = _Terminal()


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout, in ASCII where stdout cannot represent all of it.

    JSON has no NaN and no infinity: where a result has one, its value is null.
    """
    text = to_json(document)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = to_json(document, ascii_only=True)
    print(text)


def present(result: Printable, output: Output, show: Callable[[Console], None]) -> None:
    """Print a result as JSON, or let `show` print it for people."""
    if output.json:
        print_json(result.to_dict())
    else:
        show(stdout())


def present_answer(
    answer: Answer[Result], output: Output, show: Callable[[Console, Result], None]
) -> None:
    """Print an answer, and for people also where its run is."""
    present(answer, output, lambda console: show(console, answer.result))
    if not output.json:
        note(f"run: {answer.run.path}")


def print_warnings(console: Console, warnings: list[str]) -> None:
    """Print warnings, one per line."""
    for text in warnings:
        console.print(f"[yellow]warning:[/] {cell(text)}")


def print_sae_fits(console: Console, fits: SaeFits) -> None:
    """Warn of SAEs that do not fit, or say that an earlier version did not record it."""
    print_warnings(console, fits.warnings)
    if fits.unrecorded:
        console.print(
            "how well the SAE fits is not recorded, because an earlier version made this run: "
            "saescope rerun RUN --out NEW records it"
        )


def masked_sentence(masked: Mapping[int, tuple[int, int]]) -> str:
    """Say how many positions the statistics left out, layer by layer if layers differ."""
    texts = {
        layer: f"{pos0} first positions, {sinks} sinks" for layer, (pos0, sinks) in masked.items()
    }
    if len(texts) > 1 and len(set(texts.values())) == 1:
        return f"left out in every layer: {next(iter(texts.values()))}."
    by_layer = "; ".join(f"layer {layer}: {text}" for layer, text in texts.items())
    return f"left out: {by_layer}."


def percent(share: float | None) -> str:
    """Format a share for people; a dash if there is none."""
    if share is None:
        return "-"
    return f"{100 * share:.1f} %"


def interval(ends: tuple[float, float]) -> str:
    """Format an interval of shares in whole percent."""
    low, high = ends
    return f"{100 * low:.0f}-{100 * high:.0f}"


def number(value: float | None, form: str = ".4g") -> str:
    """Format a number; a dash if there is none."""
    if value is None:
        return "-"
    return format(value, form)


def cell(text: str) -> str:
    """Make a text a table cell: no control characters, no markup, outer spaces visible."""
    shown = visible(text)
    if shown.startswith(" ") or shown.endswith(" "):
        shown = shown.replace(" ", "·")
    return escape(shown)
