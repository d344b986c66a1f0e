"""Terminal tables that fit the screen: whole columns are left out, never parts of cells."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

# A text column may be folded down to this width before a column is left out.
_FOLDED_WIDTH = 22
# rich puts a space on both sides of a cell, one between cells, and one at each end of the row.
_PADDING, _ENDS = 3, 1


@dataclass
class ResultTable:
    """Rows under named columns. `text` columns may fold; `numbers` never break.

    Columns in `optional` are left out, first named first, until the table fits the console.
    """

    title: str
    text: Sequence[str]
    numbers: Sequence[str] = ()
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
        hidden = self._columns_to_hide(console.width)
        if self.title:  # printed apart: rich would wrap it at the width of the table
            console.print(f"[bold]{self.title}[/]")
        console.print(self._render(hidden))
        if hidden:
            names = ", ".join(" ".join(name.split()) for name in hidden)
            console.print(f"[dim]left out at this width: {names} (--json has them)[/]\n")

    @property
    def columns(self) -> list[str]:
        """All column names, text first."""
        return [*self.text, *self.numbers]

    def _columns_to_hide(self, width: int) -> list[str]:
        hidden: list[str] = []
        for name in self.optional:
            if self._width(hidden) <= width:
                break
            hidden.append(name)
        return hidden

    def _width(self, hidden: Sequence[str]) -> int:
        """Return the narrowest width at which no number breaks."""
        shown = [index for index, name in enumerate(self.columns) if name not in hidden]
        return _ENDS + sum(self._column_width(index) + _PADDING for index in shown)

    def _column_width(self, index: int) -> int:
        """Return the width a column needs. Headers break between words, numbers do not break."""
        name = self.columns[index]
        header = max(map(cell_len, name.split()), default=0)
        content = max((_longest_line(row[index]) for row in self.rows), default=0)
        if name in self.text:
            content = min(content, _FOLDED_WIDTH)
        return max(header, content)

    def _render(self, hidden: Sequence[str]) -> Table:
        table = Table(
            header_style="bold",
            box=SIMPLE_HEAD,
            show_header=self.header,
        )
        shown = [index for index, name in enumerate(self.columns) if name not in hidden]
        for index in shown:
            name = self.columns[index]
            if name in self.text:
                table.add_column(name, justify="left", overflow="fold")
            else:
                width = self._column_width(index)
                table.add_column(name, justify="right", overflow="fold", min_width=width)
        for number, row in enumerate(self.rows):
            cells = [row[index] for index in shown]
            table.add_row(*cells, end_section=number in self.section_ends)
        return table


def _longest_line(cell: str) -> int:
    return max((cell_len(line) for line in Text.from_markup(cell).plain.splitlines()), default=0)
