"""How results look: JSON or tables on stdout, progress and notes on stderr."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from saescope.store.runs import Run
from saescope.surfaces.visible import visible
from saescope.table import Table as Result

T = TypeVar("T", bound=Result)
_PLAIN_WIDTH = 160


@final
class _Results(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the caller: rich would end the program as failed when `head` has seen enough."""
        raise BrokenPipeError


def stdout() -> Console:
    """The console for results; wide where it is no terminal, so that pipes and files keep whole cells."""
    console = _Results(highlight=False)
    return console if console.is_terminal else _Results(highlight=False, width=_PLAIN_WIDTH)


def note(text: str) -> None:
    """One line for the person, not for the program that reads stdout."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, style="dim", markup=False)


def print_json(result: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    print(json.dumps(result, ensure_ascii=False, allow_nan=False))


def present(run: Run, result: T, show: Callable[[Console, T], None], *, json: bool) -> None:
    """A result for programs or for people; people are told where its run lies."""
    if json:
        print_json(result.to_dict())
    else:
        show(stdout(), result)
        note(f"run: {run.path}")


def table(title: str, *columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns hold words and the others numbers."""
    made = Table(
        title=title, title_justify="left", title_style="bold", header_style="bold", box=SIMPLE_HEAD
    )
    for n, column in enumerate(columns):
        made.add_column(column, justify="left" if n < left else "right", overflow="fold")
    return made


def left_out(masked: Mapping[int, tuple[int, int]]) -> str:
    """What position 0 and sinks took out of the statistics, layer by layer where layers differ."""
    texts = {n: f"{pos0} first positions, {sinks} sinks" for n, (pos0, sinks) in masked.items()}
    if len(texts) > 1 and len(set(texts.values())) == 1:
        return f"left out in every layer: {next(iter(texts.values()))}."
    return "left out: " + "; ".join(f"layer {n}: {text}" for n, text in texts.items()) + "."


def percent(share: float) -> str:
    """A share as a person reads it."""
    return f"{100 * share:.1f} %"


def cell(text: str) -> str:
    """A token or prompt as a table cell: control characters escaped, markup taken literally, spaces visible."""
    from rich.markup import escape

    shown = visible(text)
    return escape(
        shown.replace(" ", "·") if shown.startswith(" ") or shown.endswith(" ") else shown
    )


@contextmanager
def progress(what: str, unit: str = "tokens") -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that is gone when the work is done."""
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
