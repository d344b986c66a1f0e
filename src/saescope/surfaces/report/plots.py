"""Small plots as inline SVG, one a set, that take their colours from the page and hold no text but numbers.

Names and tokens stay in HTML: matplotlib would need fonts for their scripts. Each plot is small, and the page puts as
many side by side as fit, so none has to be shrunk on a narrow screen.
"""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from saescope.analysis.contrast import FeatureContrast
from saescope.analysis.profile import LayerNorms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

_WIDTH, _HEIGHT = (
    3.9,
    2.3,
)  # inches of 72 units: the size of a plot on the page, in CSS pixels, is about the same
# What matplotlib draws in these colours, the page draws in its own, which differ by theme.
QUIET, RULE, FIRST, LATER = "#020202", "#030303", "#040404", "#050505"
_PAGE_COLOURS = {
    QUIET: "var(--quiet)",
    RULE: "var(--rule)",
    FIRST: "var(--first)",
    LATER: "var(--accent)",
}
_STYLE: "dict[RcKeyType, Any]" = {
    "svg.fonttype": "none",
    "svg.hashsalt": "saescope",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same layout on every machine
    "font.size": 10.5,
    "text.color": QUIET,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "xtick.major.size": 3,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw as the page wants it, whatever the user's own matplotlib settings are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def norms_plot(
    name: str, by_layer: Mapping[int, LayerNorms], limits: tuple[float, float], label: str
) -> Markup:
    """Means (lines) and medians (dots) of position 0's norm and of later ones, on a logarithmic scale."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = _axes()
    layers = list(by_layer)
    for colour, mean, median in ((FIRST, "pos0_norm_mean", "pos0_norm_median"),
                                 (LATER, "later_norm_mean", "later_norm_median")):  # fmt: skip
        axes.plot(layers, _values(by_layer, mean), color=colour, solid_capstyle="round")
        axes.plot(
            layers,
            _values(by_layer, median),
            color=colour,
            linestyle="none",
            marker="o",
            markersize=3.2,
        )
    axes.set_yscale("log")
    axes.set_ylim(*limits)
    # Over two powers of ten, their multiples would crowd.
    axes.yaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if limits[1] < 100 * limits[0] else (1,))
    )
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:,g}")
    return as_element(figure, name, label)


def score_plot(
    name: str, by_layer: Mapping[int, FeatureContrast], low: float, label: str
) -> Markup:
    """Held-out score and interval of each layer's best feature; hollow where it is not confirmed."""
    figure, axes = _axes()
    layers = list(by_layer)
    ends = [feature.holdout_score_ci for feature in by_layer.values()]
    axes.vlines(
        layers, [e[0] for e in ends], [e[1] for e in ends], color=LATER, linewidth=3.5, alpha=0.3
    )
    axes.plot(
        layers, [f.holdout_score for f in by_layer.values()], color=LATER, linewidth=1.1, alpha=0.7
    )
    for layer, feature in by_layer.items():
        fill = LATER if feature.confirmed else "none"
        axes.plot([layer], [feature.holdout_score], "o", color=LATER, markerfacecolor=fill)
    axes.set_ylim(low, 1.03)
    return as_element(figure, name, label)


def _values(by_layer: Mapping[int, LayerNorms], field: str) -> list[float]:
    """One figure by layer, with a gap where a set has no later position."""
    values = (getattr(norms, field) for norms in by_layer.values())
    return [float("nan") if value is None else value for value in values]


def _axes() -> "tuple[Figure, Axes]":
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("layer")
    axes.margins(x=0.04)
    return figure, axes


def as_element(figure: "Figure", name: str, label: str) -> Markup:
    """The figure as an element of the page: no size of its own, ids that no other plot has, a name for readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box is not None
    # The style rule is for every element there is, and would be for the page's too.
    drawn = svg[svg.index("</style>") :].partition("</defs>")[2].strip()
    used = set(re.findall(r'(?:url\(#|xlink:href="#)([^)"]+)', drawn))
    drawn = re.sub(
        r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", drawn
    )
    drawn = drawn.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    drawn = re.sub(
        r"<!--.*?-->\s*|(?<=\n) +| transform=\"rotate\(-0 [^\"]+\"", "", drawn, flags=re.DOTALL
    )
    drawn = drawn.replace("font-family: 'DejaVu Sans'; ", "")
    for colour, on_page in _PAGE_COLOURS.items():
        drawn = drawn.replace(colour, on_page)
    opening = Markup('<svg viewBox="{}" role="img" aria-label="{}"><title>{}</title>')
    return opening.format(box[1], label, label) + Markup(drawn)
