"""What an export gives back: the files, and what they equal."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from saescope.table import Table


@final
@dataclass(frozen=True)
class ExportResult(Table):
    """The files of an export, whether they do exactly what they are meant for, and what that is.

    `limits` are the ways in which they differ from it, or from the edits they were made of; `measured` what was.
    """

    format: str
    out: Path
    files: tuple[Path, ...]
    exact: bool
    equals: str
    limits: tuple[str, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope export`."""
        return {
            "format": self.format,
            "out": str(self.out),
            "files": [str(path) for path in self.files],
            "exact": self.exact,
            "equals": self.equals,
            "limits": list(self.limits),
            **self.measured,
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row a file."""
        return [
            {"format": self.format, "file": str(path), "bytes": path.stat().st_size}
            for path in self.files
        ]


def files_in(out: Path) -> tuple[Path, ...]:
    """The files of a published folder, or the file itself, in order."""
    return (
        tuple(sorted(path for path in out.rglob("*") if path.is_file())) if out.is_dir() else (out,)
    )
