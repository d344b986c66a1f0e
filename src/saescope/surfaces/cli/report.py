"""`saescope report`: a run as one HTML page."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from saescope.store.runs import Run
from saescope.surfaces.cli.show import print_json


def report(
    run: Path, /, *, out: Path | None = None, json: Annotated[bool, Parameter(negative="")] = False
) -> None:
    """Write a run's findings, plots and manifest as one HTML page that opens anywhere and loads nothing.

    Parameters
    ----------
    run
        A run made before.
    out
        The page; RUN.html beside the run when left out.
    json
        Print one JSON document instead of the path.
    """
    from saescope.surfaces.report import write_report

    written = write_report(Run.open(run.expanduser()), out and out.expanduser())
    if json:
        print_json({"report": str(written)})
    else:
        print(written)
