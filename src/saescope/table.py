"""The table that every result is: rows of plain values, for notebooks and other programs."""

import html
import importlib
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from saescope.errors import SaescopeError

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_SHOWN = 50
_MOST_COLUMNS = 8
# Of a result as text: ten lines with a heading, warnings, names and what is left out.
_ROWS_IN_TEXT = 6
_WIDTH = 100
_LONGEST_CELL = 24


class Table(ABC):
    """A result as rows of plain values.

    Text and notebooks show at most eight columns: those that `shown` names, separated by spaces,
    or the first ones.
    """

    shown: ClassVar[str] = ""

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """Rows with equal columns; features as `17/23991`, shares between 0 and 1."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The whole result as JSON values."""

    @property
    def top_warnings(self) -> list[str]:
        """Warnings that a reader needs before the rows."""
        return []

    def to_arrow(self) -> "pa.Table":
        """The rows as an Arrow table."""
        import pyarrow as pa

        return pa.Table.from_pylist(self.rows())

    def to_polars(self) -> Any:
        """The rows as a polars DataFrame; raises SaescopeError if polars is not installed."""
        return _import("polars").from_arrow(self.to_arrow())

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame; raises SaescopeError if pandas is not installed."""
        _import("pandas")
        return self.to_arrow().to_pandas()

    def __repr__(self) -> str:
        rows = self.rows()
        n_columns = len(rows[0]) if rows else 0
        lines = [f"{type(self).__name__}: {len(rows):,} rows, {n_columns} columns"]
        if self.top_warnings:
            lines.append(f"{len(self.top_warnings)} warnings: see .top_warnings")
        cells = self._cells(rows[:_ROWS_IN_TEXT])
        if rows:
            lines += _aligned(cells)
        if len(rows) > _ROWS_IN_TEXT or (rows and len(cells[0]) < n_columns):
            lines.append("… all of it: .rows(), .to_dict(), .to_pandas()")
        return "\n".join(map(_cut_line, lines))

    def _repr_html_(self) -> str:
        rows = self.rows()
        head, *body = self._cells(rows[:_ROWS_SHOWN])
        table_head, table_body = _html_row("th", head), "".join(_html_row("td", r) for r in body)
        warnings = [f"<p>warning: {html.escape(_one_line(text))}</p>" for text in self.top_warnings]
        table = f"<table><thead>{table_head}</thead><tbody>{table_body}</tbody></table>"
        more = []
        if len(rows) > _ROWS_SHOWN:
            more.append(f"{len(rows) - _ROWS_SHOWN:,} more rows")
        if rows and len(head) < len(rows[0]):
            more.append(f"{len(rows[0]) - len(head)} more columns in .to_pandas()")
        below = f"<p>{', '.join(more)}</p>" if more else ""
        return "".join([*warnings, table, below, self._plots()])

    def _cells(self, rows: list[dict[str, Any]]) -> list[list[str]]:
        """Return names and values of the columns that are shown, as text: the first row is names.

        Columns without values in these rows are left out.
        """
        names = tuple(self.shown.split()) or tuple(rows[0] if rows else ())
        names = tuple(name for name in names if any(row.get(name) is not None for row in rows))
        names = names[:_MOST_COLUMNS]
        return [list(names), *([_format(row.get(name)) for name in names] for row in rows)]

    def _plots(self) -> str:
        """Return what the report draws for this result as inline SVG; empty if it draws nothing.

        Found by name when a notebook asks: results know nothing of how they are displayed.
        """
        notebook = importlib.import_module("saescope.surfaces.report.notebook")
        plots: str = notebook.plots(self)
        return plots


def _html_row(tag: str, values: Iterable[str]) -> str:
    cells = [f"<{tag}>{html.escape(value)}</{tag}>" for value in values]
    return f"<tr>{''.join(cells)}</tr>"


def _aligned(rows: list[list[str]]) -> list[str]:
    """Return rows as lines of aligned columns, as many as fit; the first column always does."""
    rows = [[_cut(cell, _LONGEST_CELL) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    n_columns = len(widths)
    while n_columns > 1 and sum(widths[:n_columns]) + 2 * n_columns > _WIDTH:
        n_columns -= 1
    lines = []
    for row in rows:
        cells = zip(row[:n_columns], widths, strict=False)
        lines.append("  ".join(cell + " " * (width - _width(cell)) for cell, width in cells))
    return [line.rstrip() for line in lines]


def _format(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, tuple | list):
        return _one_line(" ".join(map(_format, value)))
    return _one_line(str(value))


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _cut_line(line: str) -> str:
    return _cut(line, _WIDTH)


def _cut(text: str, width: int) -> str:
    """Return a text, or as much of it as is at most `width` columns wide."""
    if _width(text) <= width:
        return text
    while _width(text) > width - 1:
        text = text[:-1]
    return text + "…"


def _width(text: str) -> int:
    """Return the columns that a text takes in a terminal: two for characters of East Asia."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise SaescopeError(f"{package} is not installed: pip install {package}") from error
