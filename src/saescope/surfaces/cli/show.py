"""How results look: JSON or tables on stdout, progress and notes on stderr."""

import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar, final, runtime_checkable

from rich.console import Console
from rich.text import Text

from saescope.jobs.reporter import Reporter
from saescope.jobs.runs import Answer
from saescope.store.sae_fit import SaeFits
from saescope.strict_json import to_json
from saescope.surfaces.cli.consoles import SafeConsole, escape
from saescope.surfaces.cli.interrupts import command_line
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.naming import as_typed
from saescope.surfaces.cli.options import Output
from saescope.surfaces.cli.progress import show_progress
from saescope.surfaces.visible import escaped_json, visible
from saescope.table import Table

PART = "[dim]→[/]"
_WIDTH_OF_PIPES = 160
_SMALL_P, _LONGEST_COUNT = 0.00095, 1e7
Result = TypeVar("Result", bound=Table)


@runtime_checkable
class Printable(Protocol):
    """A result that has a JSON form."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON values."""


def stdout() -> Console:
    """Return the console for results. Pipes and files get a wide one, so that cells stay whole."""
    console = SafeConsole()
    if console.is_terminal:
        return console
    return SafeConsole(width=_WIDTH_OF_PIPES)


def note(text: str) -> None:
    """Print a line for the person, not for the program that reads stdout.

    A terminal gets it broken between words; a file or a pipe gets one line.
    """
    console = SafeConsole(stderr=True, soft_wrap=True)
    line = visible(as_typed(text))
    if sys.stderr.isatty():
        print_line(console, Text(line), style="dim")
    else:
        console.print(line, style="dim", markup=False)


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
    text = escaped_json(to_json(document))
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
        print_result(show)


def print_result(show: Callable[[Console], None]) -> None:
    """Let `show` print a result for people."""
    show(stdout())


def present_answer(
    answer: Answer[Result], output: Output, show: Callable[[Console, Result], None]
) -> None:
    """Print an answer, and for people also where its run is."""
    present(answer, output, lambda console: show(console, answer.result))
    if not output.json:
        note(f"run: {answer.run.path}")


def print_finding(console: Console, sentence: str) -> None:
    """Print what a result shows, in words, as the first line."""
    print_line(console, f"[bold]{cell(sentence)}[/]")


def print_warnings(console: Console, warnings: list[str]) -> None:
    """Print each warning as a line."""
    for text in warnings:
        print_line(console, f"[yellow]warning:[/] {cell(as_typed(text))}")


def print_sae_fits(console: Console, fits: SaeFits, run: str = "RUN") -> None:
    """Warn of SAEs that do not fit, or say that an earlier version did not record it."""
    print_warnings(console, fits.warnings)
    if fits.unrecorded:
        print_line(
            console,
            "how well the SAE fits is not recorded, because an earlier version made this run: "
            f"{cell(command_line('rerun', run, '--out', f'{run}-again'))} records it",
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


def p_value(p: float | None) -> str:
    """Format a p or q: 0.04, and 4e-07 if it is small."""
    if p is None:
        return "-"
    return f"{p:.1g}" if p >= _SMALL_P else f"{p:.0e}"


def significant(value: float, digits: int = 3) -> str:
    """Format a number with so many significant digits, so that columns line up: 39.5, 7.40."""
    if value == 0:
        return "0"
    text = f"{value:#.{digits}g}"
    return f"{value:,.0f}" if "e+" in text and abs(value) < _LONGEST_COUNT else text.rstrip(".")


def token_cell(text: str) -> str:
    """Make a token's text a table cell; a mark stands for the bytes of a character to come."""
    if not text:
        return PART
    # A mark that combines with the character before it is drawn on a circle.
    return cell(f"◌{text}" if unicodedata.combining(text[0]) else text)


def print_parts_note(console: Console, tokens: Iterable[str]) -> None:
    """Explain the mark of bytes of a character, if one of the tokens has it."""
    if not all(tokens):
        print_line(
            console, f"{PART} first bytes of a character; the token that completes it shows it"
        )


def cell(text: str) -> str:
    """Make a text a table cell: no control characters, no markup, outer spaces visible."""
    shown = visible(text)
    if shown.startswith(" ") or shown.endswith(" "):
        shown = shown.replace(" ", "·")
    return escape(shown)
