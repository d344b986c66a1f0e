"""A run as one HTML page, self-contained: no network, no scripts, no web fonts.

`analysis/report_findings.py` computes what is on it, `page.py` renders it, `plots.py` and `heat_map.py` draw, and
`page.html` and `page.css` are how it looks. The same run gives the same bytes, wherever it lies.
"""

from pathlib import Path

from saescope.errors import RunError
from saescope.store.atomic import replace_file
from saescope.store.runs import Run


def write_report(run: Run, out: Path | None = None) -> Path:
    """Write a run's page, beside the run where no file is named, and say where it is.

    Raises RunError for a place inside the run, which is immutable, and ResourceError where it cannot be written.
    """
    from saescope.surfaces.report.page import render

    home = run.path if run.path.name not in ("", "..") else run.path.resolve()
    out = home.parent / f"{home.name}.html" if out is None else out
    if out.resolve().is_relative_to(run.path.resolve()):
        raise RunError(f"{out} lies in the run, which is never written again: choose another --out")
    replace_file(out, render(run))
    return out
