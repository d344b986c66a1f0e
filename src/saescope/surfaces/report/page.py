"""Renders the findings of a run as one HTML page."""

import shlex

from saescope.analysis.report_findings import MAX_SINKS, ReportFindings
from saescope.surfaces.report import plots
from saescope.surfaces.report.heat_map import heat_map
from saescope.surfaces.report.templates import css, load_template


def render(findings: ReportFindings) -> str:
    """Return the page as HTML."""
    run = findings.run
    template = load_template("page.html")
    html = template.render(
        css=css(),
        findings=findings,
        heat_maps=[heat_map(best) for best in findings.best_features],
        max_sinks=MAX_SINKS,
        name=run.path.resolve().name,
        norm_plots=plots.norm_plots(findings.profile),
        norm_scale=plots.NormScale.of(findings.profile),
        quote=shlex.quote,
        run=run,
        score_plots=plots.score_plots(findings.contrast),
    )
    return html.lstrip()
