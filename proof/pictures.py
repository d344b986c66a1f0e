"""Pictures of the page in saescope's own style: the same figures give the same bytes."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from proof.folder import DataFolder
from saescope.surfaces.report.frontier import PAPER
from saescope.surfaces.report.svg import page_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart in print and by readers who see fewer colours (Okabe and Ito).
COLOURS = ("#0b6a83", "#b4540a", "#56616a", "#7a4a9e", "#4f7d2a", "#b0233c", "#a07a00", "#222222")
QUIET, RULE = PAPER.quiet, PAPER.rule


@contextmanager
def picture(
    folder: DataFolder, name: str, size: tuple[float, float], columns: int = 1
) -> "Iterator[tuple[Figure, Sequence[Axes]]]":
    """Yield a figure and its axes side by side; write `results/NAME.svg` when the block ends."""
    from matplotlib.figure import Figure

    with page_style():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        for one in axes:
            one.tick_params(labelcolor=QUIET, color=RULE)
            one.grid(color=RULE)
            one.spines["bottom"].set_color(RULE)
            one.xaxis.label.set_color(QUIET)
            one.yaxis.label.set_color(QUIET)
            one.title.set_color(QUIET)
        yield figure, list(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    folder.results.mkdir(parents=True, exist_ok=True)
    (folder.results / f"{name}.svg").write_bytes(buffer.getvalue())


def percent_axis(axes: "Axes", label: str) -> None:
    """Let the vertical axis show shares from 0 to 100 %."""
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25", "50", "75", "100"])
    axes.set_ylabel(label)


def heat_map(
    axes: "Axes",
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
) -> None:
    """Draw shares as coloured cells with their percentages; None leaves a cell empty."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("shares", ["#ffffff", COLOURS[0]])
    known = [[0.0 if share is None else share for share in shares] for shares in values]
    axes.imshow(known, cmap=shades, vmin=0, vmax=1, aspect="auto")
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks(range(len(columns)), columns, rotation=0)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.set_title(title, loc="left", fontsize=11)
    for row, shares in enumerate(values):
        for column, share in enumerate(shares):
            if share is None:
                continue
            colour = "white" if share > 0.55 else QUIET
            text = f"{100 * share:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
