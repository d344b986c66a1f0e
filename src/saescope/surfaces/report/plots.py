"""Small plots of a run's page, one per set. They hold no text but numbers.

Names and tokens stay in HTML, because matplotlib would need fonts for their scripts. The page puts
as many plots side by side as fit, so that none has to shrink on a narrow screen.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from saescope.analysis.contrast import Contrast, FeatureContrast
from saescope.analysis.profile import LayerNorms, Profile
from saescope.surfaces.report.svg import FIRST, LATER, as_element, page_style
from saescope.surfaces.report.templates import short
from saescope.surfaces.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (3.9, 2.3)  # inches of 72 units, about as many CSS pixels on the page
_MAX_PLOTS = 16
_MARGIN = 1.3


@dataclass(frozen=True)
class Plot:
    """The plot of one set."""

    set: str
    svg: Markup


@dataclass(frozen=True)
class NormScale:
    """The logarithmic scale that all residual norms of a page share."""

    low: float
    high: float

    @classmethod
    def of(cls, profile: Profile) -> "NormScale":
        """Return a scale that fits all norms, with some room at both ends."""
        norms = [norm for norm in _all_norms(profile) if 0 < norm < math.inf]
        if not norms:
            return cls(0.5, 2.0)
        return cls(min(norms) / _MARGIN, max(norms) * _MARGIN)

    def percent(self, norm: float) -> str:
        """Return the place of a norm on the scale, in percent from its low end."""
        if norm <= self.low:
            return "0"
        return f"{100 * math.log(norm / self.low) / math.log(self.high / self.low):.1f}"


def norm_plots(profile: Profile) -> list[Plot]:
    """Plot residual norms by layer, one plot per set; none if there is one layer only."""
    scale = NormScale.of(profile)
    plots = []
    with page_style():
        for index, name in enumerate(list(profile.sets)[:_MAX_PLOTS]):
            by_layer = profile.sets[name].layers
            if len(by_layer) < 2:
                return []
            svg = as_element(
                _norm_figure(by_layer, scale),
                f"n{index}",
                f"residual norms of {_label(name)} by layer",
            )
            plots.append(Plot(name, svg))
    return plots


def score_plots(contrast: Contrast | None) -> list[Plot]:
    """Plot the held-out score of each layer's best feature, one plot per set.

    There is none if there is one layer only.
    """
    if contrast is None or len(contrast.layers) < 2:
        return []
    some_layer = next(iter(contrast.layers.values()))
    names = list(some_layer.sets)[:_MAX_PLOTS]
    by_set = {name: _best_by_layer(contrast, name) for name in names}
    low = _lowest_score([one for best in by_set.values() for one in best.values()])
    plots = []
    with page_style():
        for index, (name, best) in enumerate(by_set.items()):
            if not best:
                continue
            label = f"held-out score of {_label(name)} by layer"
            svg = as_element(_score_figure(best, low), f"s{index}", label)
            plots.append(Plot(name, svg))
    return plots


def _all_norms(profile: Profile) -> Iterator[float]:
    for one in profile.sets.values():
        for norms in one.layers.values():
            yield norms.pos0_norm_mean
            yield norms.pos0_norm_median
            if norms.later_norm_mean is not None and norms.later_norm_median is not None:
                yield norms.later_norm_mean
                yield norms.later_norm_median


def _label(name: str) -> str:
    return visible(short(name))


def _norm_figure(by_layer: Mapping[int, LayerNorms], scale: NormScale) -> "Figure":
    """Draw means as lines and medians as dots, for position 0 and for later positions."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = _figure()
    layers = list(by_layer)
    for place, colour in (("pos0", FIRST), ("later", LATER)):
        means = _values(by_layer, f"{place}_norm_mean")
        medians = _values(by_layer, f"{place}_norm_median")
        axes.plot(layers, means, color=colour, solid_capstyle="round")
        axes.plot(layers, medians, "o", color=colour, markersize=3.2)
    axes.set_yscale("log")
    axes.set_ylim(scale.low, scale.high)
    steps: tuple[int, ...] = (1, 2, 5)
    if scale.high >= 100 * scale.low:  # labels would crowd
        steps = (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:,g}")
    return figure


def _values(by_layer: Mapping[int, LayerNorms], name: str) -> list[float]:
    """Return one figure by layer, with a gap if a set has no later position."""
    values = [getattr(norms, name) for norms in by_layer.values()]
    return [math.nan if value is None else value for value in values]


def _best_by_layer(contrast: Contrast, name: str) -> dict[int, FeatureContrast]:
    """Return a set's feature that is best on the discovery prompts, by layer."""
    best = {}
    for n, layer in contrast.layers.items():
        features = layer.sets[name].features
        if features:
            best[n] = features[0]
    return best


def _lowest_score(features: Sequence[FeatureContrast]) -> float:
    """Return where the score axis starts: at 0, or below the lowest interval."""
    if not features:
        return 0.0
    return min(0.0, *(one.holdout_score_ci[0] for one in features)) - 0.03


def _score_figure(best: Mapping[int, FeatureContrast], low: float) -> "Figure":
    """Draw scores and their intervals; dots are hollow if the feature is not confirmed."""
    figure, axes = _figure()
    layers = list(best)
    scores = [one.holdout_score for one in best.values()]
    ci_low = [one.holdout_score_ci[0] for one in best.values()]
    ci_high = [one.holdout_score_ci[1] for one in best.values()]
    axes.vlines(layers, ci_low, ci_high, color=LATER, linewidth=3.5, alpha=0.3)
    axes.plot(layers, scores, color=LATER, linewidth=1.1, alpha=0.7)
    for layer, one in best.items():
        fill = LATER if one.confirmed else "none"
        axes.plot([layer], [one.holdout_score], "o", color=LATER, markerfacecolor=fill)
    axes.set_ylim(low, 1.03)
    return figure


def _figure() -> "tuple[Figure, Axes]":
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("layer")
    axes.margins(x=0.04)
    return figure, axes
