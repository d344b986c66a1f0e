"""The frontier of an evaluation: how often a behaviour shows against the damage that edits do.

Each arm is a point, and the edits are a line over their strengths.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from saescope.control.evaluation.effects import HARMLESS_KL
from saescope.surfaces.report.svg import FIRST, LATER, QUIET, RULE, as_element, page_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PAGE_SIZE = (7.0, 3.6)  # inches of 72 units
_FILE_SIZE = (8.0, 4.8)
_EDITS, _INSTRUCTION = "edits", "prompt only"
_OPACITY = {False: 1.0, True: 0.35}  # of marks, pale if the control is wrecked
_DASHED, _DOTTED = (0, (4, 3)), (0, (1, 2))
Format = Literal["svg", "png"]
Arm = Mapping[str, Any]


@dataclass(frozen=True)
class Palette:
    """The colours of a plot."""

    quiet: str
    rule: str
    first: str
    later: str


PAGE = Palette(QUIET, RULE, FIRST, LATER)
PAPER = Palette("#56616a", "#dbe0e4", "#b4540a", "#0b6a83")


@dataclass(frozen=True)
class Mark:
    """How an arm is drawn: matplotlib's marker, the same as a character, and a colour."""

    label: str
    marker: str
    symbol: str
    colour: Literal["quiet", "first", "later"]


MARKS: Mapping[str, Mark] = {
    _EDITS: Mark("edits, by strength", "o", "●", "later"),
    "random feature": Mark("random firing feature, each draw", "x", "×", "quiet"),
    "random direction": Mark("random direction, each draw", "+", "+", "quiet"),
    "minus": Mark("opposite sign", "v", "▼", "quiet"),
    "difference of means, project": Mark("difference of means, projected out", "s", "■", "first"),
    "difference of means, add": Mark("difference of means, added", "D", "◆", "first"),
}


def frontier(document: Mapping[str, Any], label: str) -> Markup | None:
    """Return the plot as an element of the page, or None if no damage was measured."""
    with page_style():
        figure = _draw(document, PAGE, _PAGE_SIZE)
        if figure is None:
            return None
        return as_element(figure, "f", label)


def frontier_file(document: Mapping[str, Any], format: Format) -> bytes | None:
    """Return the plot with its legend as a file, or None if no damage was measured."""
    with page_style():
        figure = _draw(document, PAPER, _FILE_SIZE)
        if figure is None:
            return None
        title = f"{document['behaviour']['name']}: behaviour against damage"
        figure.axes[0].set_title(title, loc="left", fontsize=12)
        figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
        # Without these, the same evaluation gives the same bytes.
        no_metadata = {"svg": "Date", "png": "Software"}
        buffer = io.BytesIO()
        figure.savefig(
            buffer,
            format=format,
            dpi=150,
            facecolor="white",
            metadata={no_metadata[format]: None},
        )
        return buffer.getvalue()


@dataclass(frozen=True)
class _Point:
    arm: str
    kl: float
    rate: float
    wrecked: bool = False


def _draw(
    document: Mapping[str, Any], palette: Palette, size: tuple[float, float]
) -> "Figure | None":
    arms = document["conditions"]
    points = [point for arm in arms for point in _points(arm)]
    kls = [point.kl for point in points if point.arm in MARKS and point.kl > 0]
    if not kls:
        return None
    floor = min(kls) / 3  # where a logarithmic scale shows no damage at all
    figure, axes = _empty_plot(palette, size)
    _draw_levels(axes, arms, palette)
    _draw_matched_damage(axes, document, palette)
    _draw_controls(axes, points, palette, floor)
    _draw_edits(axes, document, palette, floor)
    _set_scales(axes, floor, max(*kls, HARMLESS_KL / 2), palette)
    return figure


def _points(arm: Arm) -> Iterator[_Point]:
    """Yield the point of an arm, or of each of its draws."""
    for draw in arm["each"] or [arm]:
        kl, rate = draw["kl_mean"], draw["behaviour_rate"]
        if kl is not None and rate is not None:
            yield _Point(arm["name"].removesuffix(" in full"), kl, rate, bool(arm["wrecked"]))


def _empty_plot(palette: Palette, size: tuple[float, float]) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(labelcolor=palette.quiet, color=palette.rule)
    axes.grid(color=palette.rule)
    axes.spines["bottom"].set_color(palette.rule)
    axes.xaxis.label.set_color(palette.quiet)
    axes.yaxis.label.set_color(palette.quiet)
    return figure, axes


def _draw_levels(axes: "Axes", arms: Sequence[Arm], palette: Palette) -> None:
    """Draw what does no damage as lines: no edits, with the interval, and an instruction alone."""
    unedited = arms[0]
    if unedited["behaviour_rate"] is not None:
        axes.axhspan(*unedited["ci"], color=palette.quiet, alpha=0.12, linewidth=0)
        axes.axhline(
            unedited["behaviour_rate"],
            color=palette.quiet,
            linewidth=1.2,
            label="without edits",
        )
    for arm in arms:
        if arm["name"] == _INSTRUCTION and arm["behaviour_rate"] is not None:
            axes.axhline(
                arm["behaviour_rate"],
                color=palette.first,
                linewidth=1.2,
                linestyle=_DASHED,
                label="an instruction alone",
            )


def _draw_matched_damage(axes: "Axes", document: Mapping[str, Any], palette: Palette) -> None:
    """Shade the damage that controls were brought to."""
    controls = document["controls"]
    if controls["at"] == "same-damage":
        kl, tolerance = controls["kl_mean"], controls["tolerance"]
        axes.axvspan(
            kl * (1 - tolerance),
            kl * (1 + tolerance),
            color=palette.later,
            alpha=0.12,
            linewidth=0,
            label="damage that controls are brought to",
        )


def _draw_controls(axes: "Axes", points: Sequence[_Point], palette: Palette, floor: float) -> None:
    for name, mark in MARKS.items():
        shown = [point for point in points if point.arm == name and name != _EDITS]
        for wrecked in (False, True):
            drawn = [point for point in shown if point.wrecked == wrecked]
            if drawn:
                axes.plot(
                    [max(point.kl, floor) for point in drawn],
                    [point.rate for point in drawn],
                    mark.marker,
                    color=getattr(palette, mark.colour),
                    alpha=_OPACITY[wrecked],
                    linestyle="none",
                    label=mark.label + ", wrecked" * wrecked,
                )


def _draw_edits(axes: "Axes", document: Mapping[str, Any], palette: Palette, floor: float) -> None:
    arms = [arm for arm in document["conditions"] if arm["name"] == _EDITS and any(_points(arm))]
    arms.sort(key=lambda arm: arm["strength"])
    kls = [max(arm["kl_mean"], floor) for arm in arms]
    rates = [arm["behaviour_rate"] for arm in arms]
    below = [arm["behaviour_rate"] - arm["ci"][0] for arm in arms]
    above = [arm["ci"][1] - arm["behaviour_rate"] for arm in arms]
    axes.errorbar(
        kls,
        rates,
        yerr=[below, above],
        color=palette.later,
        marker="o",
        linewidth=1.6,
        elinewidth=3,
        label=MARKS[_EDITS].label,
    )
    for arm, kl, rate in zip(arms, kls, rates, strict=True):
        if arm["strength"] == document["chosen"]["strength"]:
            _ring(axes, kl, rate, palette)
        axes.annotate(
            f"{arm['strength']:g}",
            (kl, rate),
            (9, 7),
            textcoords="offset points",
            color=palette.later,
        )


def _ring(axes: "Axes", kl: float, rate: float, palette: Palette) -> None:
    axes.plot(
        [kl],
        [rate],
        "o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor=palette.later,
        markeredgewidth=1.6,
        label="strength of the verdict",
    )


def _set_scales(axes: "Axes", floor: float, largest: float, palette: Palette) -> None:
    """Make the scale of damage logarithmic, with 0 at its left end."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(floor / 1.4, largest * 2)
    first, last = math.ceil(math.log10(floor * 2)), math.floor(math.log10(largest * 2))
    decades = [10.0**exponent for exponent in range(first, last + 1)]
    axes.xaxis.set_major_locator(FixedLocator([floor, *decades]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([floor, *decades], ["0", *(f"{decade:g}" for decade in decades)])
    axes.set_ylim(-0.04, 1.06)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25", "50", "75", "100"])
    axes.axvline(HARMLESS_KL, color=palette.quiet, linewidth=1, linestyle=_DOTTED)
    axes.set_xlabel("KL per token on neutral text, nats")
    axes.set_ylabel("replies that show it")
