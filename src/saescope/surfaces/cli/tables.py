"""Terminal tables that fit the screen: whole columns are left out, never parts of cells."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from saescope.surfaces.cli.consoles import from_markup
from saescope.surfaces.cli.lines import folded, print_line

# Words up to this width stay whole, whichever columns that takes; longer ones may have to fold.
_FOLDED_WIDTH = 22
# Text up to this width stays on one line.
_LABEL_WIDTH = 20
# rich puts a space on both sides of a cell, one between cells, and one at each end of the row.
_PADDING, _ENDS = 3, 1


@dataclass
class ResultTable:
    """Rows under named columns: `text`, then `numbers`, then the text columns `after` them.

    Text folds between words if the console is narrow; numbers never break. If that is not enough,
    columns are left out: those in `optional`, first named first, then others from the right.
    """

    title: str
    text: Sequence[str]
    numbers: Sequence[str] = ()
    after: Sequence[str] = ()
    optional: Sequence[str] = ()
    header: bool = True
    rows: list[list[str]] = field(default_factory=list)
    section_ends: set[int] = field(default_factory=set)

    def add(self, *cells: str, end_section: bool = False) -> None:
        """Add one row, a cell per column; cells may hold rich markup."""
        self.rows.append(list(cells))
        if end_section:
            self.section_ends.add(len(self.rows) - 1)

    def end_section(self) -> None:
        """Draw a line under the last row."""
        self.section_ends.add(len(self.rows) - 1)

    def print(self, console: Console) -> None:
        """Print the table, and below it which columns were left out."""
        layout = _TableLayout(self._columns(), self._order_of_leaving(), console.width)
        if self.title:  # printed apart: rich would wrap it at the width of the table
            print_line(console, f"[bold]{self.title}[/]")
        console.print(self._render(layout.widths))
        if layout.hidden:
            names = "; ".join(" ".join(self.columns[index].split()) for index in layout.hidden)
            print_line(
                console, f"[dim]columns left out at this width: {names} (--json has them)[/]\n"
            )

    @property
    def columns(self) -> list[str]:
        """All column names, from left to right."""
        return [*self.text, *self.numbers, *self.after]

    def _columns(self) -> list["_TableColumn"]:
        first_number, first_after = len(self.text), len(self.text) + len(self.numbers)
        return [
            _TableColumn.of(
                name,
                [from_markup(row[index]).plain for row in self.rows],
                is_number=first_number <= index < first_after,
            )
            for index, name in enumerate(self.columns)
        ]

    def _order_of_leaving(self) -> list[int]:
        """Return the columns that may be left out, as indices: all but the first."""
        last_index = {name: index for index, name in enumerate(self.columns)}  # sets name columns
        stated = [last_index[name] for name in self.optional]
        others = [index for index in range(len(self.columns) - 1, 0, -1) if index not in stated]
        return [index for index in [*stated, *others] if index]

    def _render(self, widths: dict[int, int]) -> Table:
        table = Table(header_style="bold", box=SIMPLE_HEAD, show_header=self.header)
        first_number, first_after = len(self.text), len(self.text) + len(self.numbers)
        for index, width in widths.items():
            is_number = first_number <= index < first_after
            table.add_column(
                self.columns[index],
                justify="right" if is_number else "left",
                overflow="fold",
                width=width,
            )
        for number, row in enumerate(self.rows):
            cells = [folded(from_markup(row[index]), width) for index, width in widths.items()]
            table.add_row(*cells, end_section=number in self.section_ends)
        return table


@dataclass(frozen=True)
class _TableColumn:
    """The smallest width at which nothing breaks that must not, and the width without any fold."""

    smallest: int
    whole: int
    is_number: bool

    @classmethod
    def of(cls, name: str, cells: Sequence[str], *, is_number: bool) -> "_TableColumn":
        """Measure a column. Headers and text break between words, numbers do not break."""
        content = max((cell_len(line) for text in cells for line in text.splitlines()), default=0)
        smallest = content
        if not is_number:
            smallest = max(min(content, _LABEL_WIDTH), min(_FOLDED_WIDTH, _longest_word(cells)))
        header = min(_FOLDED_WIDTH, _longest_word([name]))
        return cls(max(header, smallest), max(cell_len(name), content), is_number)


class _TableLayout:
    """Which columns are shown, how wide, and which are hidden, in the order of leaving."""

    def __init__(self, columns: Sequence[_TableColumn], leaving: Sequence[int], width: int) -> None:
        self.hidden: list[int] = []
        shown = dict(enumerate(columns))
        for index in leaving:
            if _total(column.smallest for column in shown.values()) <= width:
                break
            del shown[index]
            self.hidden.append(index)
        self.widths = _widths(shown, width)


def _widths(shown: dict[int, _TableColumn], width: int) -> dict[int, int]:
    """Share the room that is left; columns that need least to be whole come first."""
    widths = {index: column.smallest for index, column in shown.items()}
    for index, column in sorted(shown.items(), key=lambda item: item[1].whole - item[1].smallest):
        room = max(0, width - _total(widths.values()))
        missing = column.whole - column.smallest
        if missing <= room:
            widths[index] += missing
        elif not column.is_number:
            widths[index] += room
    return widths


def _total(widths: Iterable[int]) -> int:
    return _ENDS + sum(width + _PADDING for width in widths)


def _longest_word(texts: Sequence[str]) -> int:
    return max((cell_len(word) for text in texts for word in text.split()), default=0)
