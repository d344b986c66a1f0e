"""The frontier of an evaluation: how often a behaviour shows against what the edit costs, strength by strength."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from saescope.surfaces.report.svg import FIRST, LATER, QUIET, RULE, as_element, page_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (7.0, 3.6)  # inches of 72 units
_PICTURE = (8.0, 4.8)
_HARM = 0.1
Format = Literal["svg", "png"]


@dataclass(frozen=True)
class Mark:
    """How a kind of row is drawn, and what it is called."""

    label: str
    marker: str
    colour: str


MARKS: Mapping[str, Mark] = {
    "edits": Mark("the edits, by strength", "o", LATER),
    "random feature": Mark("random feature that fires, each draw", "x", QUIET),
    "random direction": Mark("random direction of the same length, each draw", "+", QUIET),
    "minus": Mark("the opposite sign", "v", QUIET),
    "difference of means, project": Mark("difference of means, projected out", "s", FIRST),
    "difference of means, add": Mark("difference of means, added", "D", FIRST),
}
# For a file of its own; on the page colours are the page's.
_PAPER = {QUIET: "#56616a", RULE: "#dbe0e4", FIRST: "#b4540a", LATER: "#0b6a83"}


def frontier(document: Mapping[str, Any], label: str) -> Markup | None:
    """The plot as an element of the page; None where no damage was measured."""
    with page_style():
        figure = _draw(document, {}, _SIZE)
        return as_element(figure, "f", label) if figure else None


def frontier_file(document: Mapping[str, Any], kind: Format) -> bytes | None:
    """The plot with its key as a file of its own; None where no damage was measured."""
    with page_style():
        figure = _draw(document, _PAPER, _PICTURE)
        if figure is None:
            return None
        axes = figure.axes[0]
        axes.set_title(
            f"{document['behaviour']['name']}: behaviour against damage", loc="left", fontsize=12
        )
        figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=150, facecolor="white", metadata=metadata)
        return buffer.getvalue()


def _draw(
    document: Mapping[str, Any], paper: Mapping[str, str], size: tuple[float, float]
) -> "Figure | None":
    from matplotlib.figure import Figure

    rows = document["conditions"]
    points = [(row, point) for row in rows for point in _points(row)]
    costs = [x for row, (x, _) in points if row["name"] in MARKS and x > 0]
    if not costs:
        return None
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    quiet, rule = paper.get(QUIET, QUIET), paper.get(RULE, RULE)
    axes.tick_params(labelcolor=quiet, color=rule)
    axes.grid(color=rule)
    axes.spines["bottom"].set_color(rule)
    axes.xaxis.label.set_color(quiet)
    axes.yaxis.label.set_color(quiet)
    floor = min(costs) / 3
    _levels(axes, rows, paper)
    for name, mark in MARKS.items():
        own = [(max(x, floor), y) for row, (x, y) in points if row["name"] == name]
        if own and name != "edits":
            colour = paper.get(mark.colour, mark.colour)
            axes.plot(
                *zip(*own, strict=True),
                mark.marker,
                color=colour,
                linestyle="none",
                label=mark.label,
            )
    _edits(axes, document, paper, floor)
    _scales(axes, floor, max([*costs, _HARM / 2]), paper)
    return figure


def _points(row: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    """Damage and rate of a row, or of each of its draws."""
    for one in row["each"] or [row]:
        if one["kl_mean"] is not None and one["behaviour_rate"] is not None:
            yield one["kl_mean"], one["behaviour_rate"]


def _levels(axes: "Axes", rows: Sequence[Mapping[str, Any]], paper: Mapping[str, str]) -> None:
    """What has no damage: the unedited rate with its interval, and an instruction alone."""
    base = rows[0]
    if base["behaviour_rate"] is not None:
        axes.axhspan(*base["ci"], color=paper.get(QUIET, QUIET), alpha=0.12, linewidth=0)
        axes.axhline(
            base["behaviour_rate"],
            color=paper.get(QUIET, QUIET),
            linewidth=1.2,
            label="without edits",
        )
    told = next((row for row in rows if row["name"] == "prompt only"), None)
    if told and told["behaviour_rate"] is not None:
        axes.axhline(told["behaviour_rate"], color=paper.get(FIRST, FIRST), linewidth=1.2, linestyle=(0, (4, 3)),
                     label="an instruction alone")  # fmt: skip


def _edits(
    axes: "Axes", document: Mapping[str, Any], paper: Mapping[str, str], floor: float
) -> None:
    colour = paper.get(LATER, LATER)
    tried = [row for row in document["conditions"] if row["name"] == "edits" and list(_points(row))]
    tried.sort(key=lambda row: row["strength"])
    xs = [max(row["kl_mean"], floor) for row in tried]
    ys = [row["behaviour_rate"] for row in tried]
    ends = [[y - row["ci"][0] for y, row in zip(ys, tried, strict=True)],
            [row["ci"][1] - y for y, row in zip(ys, tried, strict=True)]]  # fmt: skip
    axes.errorbar(
        xs,
        ys,
        yerr=ends,
        color=colour,
        marker="o",
        linewidth=1.6,
        elinewidth=3,
        label=MARKS["edits"].label,
    )
    chosen = document["chosen"]["strength"]
    for x, y, row in zip(xs, ys, tried, strict=True):
        if row["strength"] == chosen:
            axes.plot([x], [y], "o", markersize=13, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.6,
                      label="the strength that the verdict is about")  # fmt: skip
        axes.annotate(
            f"{row['strength']:g}", (x, y), (9, 7), textcoords="offset points", color=colour
        )


def _scales(axes: "Axes", floor: float, most: float, paper: Mapping[str, str]) -> None:
    """A logarithmic scale of damage whose left end stands for none at all."""
    import numpy as np
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(floor / 1.4, most * 2)
    decades = [
        10.0**n
        for n in range(int(np.ceil(np.log10(floor * 2))), int(np.floor(np.log10(most * 2))) + 1)
    ]
    axes.xaxis.set_major_locator(FixedLocator([floor, *decades]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([floor, *decades], ["0", *(f"{decade:g}" for decade in decades)])
    axes.set_ylim(-0.04, 1.06)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25", "50", "75", "100"])
    axes.axvline(_HARM, color=paper.get(QUIET, QUIET), linewidth=1, linestyle=(0, (1, 2)))
    axes.set_xlabel("KL a token on neutral text, nats")
    axes.set_ylabel("replies that show it")
