"""The table that every result is: rows of plain values, for notebooks and other programs."""

import html
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from saescope.errors import SaescopeError

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_SHOWN = 50


class Table(ABC):
    """A result as rows of plain values."""

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

    def _repr_html_(self) -> str:
        rows = self.rows()
        columns = rows[0].keys() if rows else ()
        head = _html_row("th", columns)
        body = "".join(_html_row("td", row.values()) for row in rows[:_ROWS_SHOWN])
        table = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
        warnings = [f"<p>warning: {html.escape(text)}</p>" for text in self.top_warnings]
        table = "".join([*warnings, table])
        hidden = len(rows) - _ROWS_SHOWN
        if hidden > 0:
            table += f"<p>{hidden} more rows</p>"
        return table


def _html_row(tag: str, values: Iterable[Any]) -> str:
    cells = [f"<{tag}>{html.escape(_format(value))}</{tag}>" for value in values]
    return f"<tr>{''.join(cells)}</tr>"


def _format(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise SaescopeError(f"{package} is not installed: pip install {package}") from error
