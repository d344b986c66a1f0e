"""A run as one HTML page, self-contained: no network, no scripts, no web fonts.

`analysis/report_findings.py` computes what is on it, `plots.py` and `heat_map.py` draw, and
`page.py` renders the template. The same run gives the same bytes, wherever it lies.
"""

from pathlib import Path

from saescope.analysis.report_findings import ReportFindings
from saescope.errors import RunError
from saescope.jobs.report import report_findings
from saescope.store.atomic import replace_file
from saescope.store.runs import Run


def write_report(run: Run, out: Path | None = None) -> Path:
    """Write a run's page and return its path. Default: RUN.html beside the run.

    The page uses the settings of the command that made the run. Raises RunError for a place inside
    the run, which is immutable, and ResourceError if the file cannot be written.

    >>> import tempfile
    >>> import saescope as ss
    >>> lm, sae = ss.load_lm("saescope-tiny", [2]), ss.load_sae("saescope-tiny-sae", 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = ss.extract(lm, [sae], ss.bundled_prompts()[:2], f"{folder}/run")
    ...     print(ss.write_report(run).name)
    run.html
    """
    return write_page(report_findings(run), out)


def write_page(findings: ReportFindings, out: Path | None = None) -> Path:
    """Write findings as a page and return its path; errors as for `write_report`."""
    from saescope.surfaces.report.page import render

    run = findings.run
    directory = run.path.resolve()
    if out is None:
        named = run.path if run.path.name not in ("", "..") else directory
        out = named.parent / f"{named.name}.html"
    out = out.expanduser()
    if out.resolve().is_relative_to(directory):
        raise RunError(f"{out} lies in the run, which never changes: choose another place")
    replace_file(out, render(findings))
    return out
