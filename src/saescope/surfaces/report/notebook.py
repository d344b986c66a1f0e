"""What a notebook shows below a result's table: the plots of its page."""

from html import escape

from saescope.analysis.contrast import Contrast
from saescope.analysis.profile import Profile
from saescope.control.evaluation.evaluation import Evaluation
from saescope.surfaces.report.frontier import frontier
from saescope.surfaces.report.plots import Plot, norm_plots, score_plots
from saescope.surfaces.visible import visible
from saescope.table import Table

# A notebook lacks the page's colours; these are readable on white and on black.
_COLOURS = "--quiet:#7a858d;--rule:#9aa6ae;--first:#c8702a;--accent:#2a8ca6"
_STYLE = f"{_COLOURS};display:flex;flex-wrap:wrap;gap:1em"


def plots(result: Table) -> str:
    """Return the plots of a result as HTML; empty if its page has none."""
    if isinstance(result, Contrast):
        return _row(score_plots(result))
    if isinstance(result, Profile):
        return _row(norm_plots(result))
    if isinstance(result, Evaluation):
        drawn = frontier(result.to_dict(), "behaviour and damage of each arm")
        return "" if drawn is None else f'<div style="{_COLOURS};max-width:640px">{drawn}</div>'
    return ""


def _row(drawn: list[Plot]) -> str:
    figures = [
        f'<figure style="margin:0;width:281px"><figcaption>{escape(visible(plot.set))}</figcaption>'
        f"{plot.svg}</figure>"
        for plot in drawn
    ]
    return f'<div style="{_STYLE}">{"".join(figures)}</div>' if figures else ""
