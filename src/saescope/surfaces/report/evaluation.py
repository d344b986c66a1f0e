"""An evaluation as one HTML page that needs nothing else, and its plot as a file: both from the evaluation's JSON."""

from collections.abc import Mapping
from typing import Any

from saescope.errors import PromptError
from saescope.surfaces.report.frontier import MARKS, frontier, frontier_file
from saescope.surfaces.report.templates import css, load_template

_REPLIES = 12


def picture(document: Mapping[str, Any], *, png: bool) -> bytes:
    """The frontier as an SVG or PNG file; raises PromptError where there is nothing to plot."""
    drawn = frontier_file(document, "png" if png else "svg")
    if drawn is None:
        raise PromptError(
            "there is no damage to plot against: give --neutral texts, and edits that change something"
        )
    return drawn


def render_evaluation(document: Mapping[str, Any]) -> str:
    """The page as HTML."""
    return load_template("evaluation.html").render(
        document=document,
        css=css(),
        plot=frontier(
            document, "how often the behaviour shows against damage, by strength of the edits"
        ),
        marks=[
            mark
            for name, mark in MARKS.items()
            if any(c["name"] == name for c in document["conditions"])
        ],
        replies=_changed(document),
    )


def _changed(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Prompts with the reply before and at the chosen strength, those whose label changed first, few of each set."""
    title = f"edits x{document['chosen']['strength']:g}"
    rows = [
        {"set": one["set"], "prompt": one["prompt"], "before": one["by"]["none"], "after": one["by"][title],
         "was": one["labels"]["none"], "now": one["labels"][title]}
        for one in document["replies"]
    ]  # fmt: skip
    rows.sort(key=lambda row: row["was"] == row["now"])
    each = max(1, _REPLIES // max(1, len({row["set"] for row in rows})))
    return [
        row for n, row in enumerate(rows) if sum(r["set"] == row["set"] for r in rows[:n]) < each
    ]
