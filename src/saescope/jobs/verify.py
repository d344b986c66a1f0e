"""The `verify` request: whether a run is still what was published."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.store.runs import verify


@dataclass(frozen=True)
class Verification:
    """The problems found in a run; none if it is whole."""

    run: Path
    problems: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of `saescope verify`."""
        return {"ok": not self.problems, "problems": self.problems, "run": str(self.run)}


@final
@dataclass(frozen=True)
class VerifyRequest(Request):
    """Check a run's hashes and schema."""

    verb: ClassVar[str] = "verify"

    directory: Path
    "Directory of the run."

    def run(self, reporter: Reporter = SILENT) -> Verification:
        """Check every table against the manifest."""
        return Verification(self.directory, verify(self.directory))
