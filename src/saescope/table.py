"""What every result can do beside its own figures: be a table, in a notebook and in other programs."""

import html
import importlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from saescope.errors import SaescopeError

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 50


class Table(ABC):
    """A result as rows of plain values."""

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """The rows, all with the same columns; features as `17/23991`, shares between 0 and 1."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values: what the command prints with --json."""

    def to_arrow(self) -> "pa.Table":
        """The rows as an Arrow table."""
        import pyarrow as pa

        return pa.Table.from_pylist(self.rows())

    def to_polars(self) -> Any:
        """The rows as a polars DataFrame; raises SaescopeError where polars is not installed."""
        return _installed("polars").from_arrow(self.to_arrow())

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame; raises SaescopeError where pandas is not installed."""
        _installed("pandas")
        return self.to_arrow().to_pandas()

    def _repr_html_(self) -> str:
        rows = self.rows()
        columns = list(rows[0]) if rows else []
        head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(_shown(value))}</td>' for value in row.values())}</tr>"
            for row in rows[:_SHOWN]
        )
        more = f"<p>{len(rows) - _SHOWN} more rows</p>" if len(rows) > _SHOWN else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _installed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise SaescopeError(f"{package} is not installed: pip install {package}") from error
