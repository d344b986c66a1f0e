"""What an export returns: the files it wrote, and what they compute."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from saescope.table import Table


@final
@dataclass(frozen=True, repr=False)
class ExportResult(Table):
    """The files of an export, and whether they do exactly what was exported.

    `equals` says in words what the files compute, `limits` in what that differs from what was
    exported, and `measured` holds figures, with the keys of the JSON.
    """

    format: str
    out: Path
    files: tuple[Path, ...]
    exact: bool
    equals: str
    limits: tuple[str, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-compatible dict that `saescope export --json` prints."""
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
        """Return one row per file."""
        return [
            {"format": self.format, "file": str(path), "bytes": path.stat().st_size}
            for path in self.files
        ]


def files_in(folder: Path) -> tuple[Path, ...]:
    """Return all files below a folder, sorted."""
    return tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
