"""The `report` request: the findings of a run, for a page about it."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import ClassVar, final

from saescope.analysis.contrast import ContrastSettings
from saescope.analysis.report_findings import ReportFindings, gather
from saescope.jobs.contrast import ContrastRequest
from saescope.jobs.detect import DetectRequest
from saescope.jobs.layers import LayersRequest
from saescope.jobs.precision import PrecisionRequest
from saescope.jobs.profile import ProfileRequest
from saescope.jobs.questions import read_command
from saescope.jobs.reporter import SILENT, Reporter
from saescope.jobs.request import Request
from saescope.store.runs import Run


@final
@dataclass(frozen=True)
class ReportRequest(Request):
    """Write a run's findings, plots and manifest as one HTML page that loads nothing else."""

    verb: ClassVar[str] = "report"

    directory: Path
    "Directory of the run."
    _: KW_ONLY
    out: Path | None = None
    "The page to write. Default: RUN.html beside the run."

    def run(self, reporter: Reporter = SILENT) -> ReportFindings:
        """Compute what the page shows; `surfaces.report` draws it."""
        return report_findings(Run.open(self.directory.expanduser()))


def report_findings(run: Run) -> ReportFindings:
    """Compute a run's findings under the settings of the command that made it."""
    return gather(run, report_settings(run))


def report_settings(run: Run) -> ContrastSettings:
    """Return the settings of the contrast that made the run, so that its page says what that said.

    After another command they are the default settings under that command's seed, masking and
    minimum effect. Raises
    RunError if the manifest's command cannot be read.
    """
    match read_command(run.manifest["command"], run.path):
        case ContrastRequest(settings=settings):
            return settings
        case DetectRequest(settings=settings):
            return ContrastSettings(
                seed=settings.seed, headline=settings.headline, masking=settings.masking
            )
        case LayersRequest() as question:
            return ContrastSettings(
                seed=question.seed, headline=question.headline, masking=question.masking
            )
        case ProfileRequest() | PrecisionRequest() as question:
            return ContrastSettings(masking=question.masking)
        case _:
            return ContrastSettings()
