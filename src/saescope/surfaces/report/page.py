"""Renders the findings of a run as one HTML page."""

import shlex

from saescope.analysis.contrast import ContrastSettings
from saescope.analysis.report_findings import MAX_SINKS, first_confirmed, gather
from saescope.errors import RunError
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.surfaces.report import plots
from saescope.surfaces.report.heat_map import heat_map
from saescope.surfaces.report.templates import css, load_template


def render(run: Run) -> str:
    """Return the page as HTML, computed with the settings of the command that made the run."""
    findings = gather(run, report_settings(run))
    template = load_template("page.html")
    html = template.render(
        css=css(),
        findings=findings,
        first_confirmed=first_confirmed,
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


def report_settings(run: Run) -> ContrastSettings:
    """Return the settings of the contrast that made the run, so that its page agrees with it.

    Other commands leave their masking, and the defaults otherwise.
    """
    try:
        command = run.manifest["command"]
        options = dict(command["options"])
        settings = dict(options.get("settings") or {})
        masking = settings.pop("masking", None) or options.get("masking") or {}
        if command["verb"] != "contrast":
            settings = {}
        return ContrastSettings(**settings, masking=Masking(**masking))
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"the manifest of {run.path} is damaged: its command cannot be read; make it again"
        ) from error
