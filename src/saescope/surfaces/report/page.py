"""What a run's page holds: findings of the analysis, gathered for the template. Computes no figure of its own."""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import groupby
from typing import Any

from markupsafe import Markup

from saescope.analysis.contrast import (
    Contrast,
    ContrastSettings,
    FeatureContrast,
    LayerContrast,
    SetContrast,
    contrast,
)
from saescope.analysis.examples import Example, Examples, TokenAct, examples
from saescope.analysis.profile import Profile, Sink, profile
from saescope.errors import PromptError, RunError
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.surfaces.report import plots
from saescope.surfaces.visible import visible

# What keeps a page of many layers and sets small; the page says where something is left out.
_FEATURE_ROWS, _ROWS_A_SET, _PROMPT_BLOCKS, _PROMPTS_A_SET = 1500, 10, 60, 5
_TOKENS, _TOKEN_LENGTH, _PLOTS, _SINKS = 120, 60, 16, 40
_LEVELS = 8


@dataclass(frozen=True)
class Cell:
    """One token of a heat map: what is shown, its level (0 is off, m masked), and all that is known of it."""

    text: str
    level: str
    label: str


@dataclass(frozen=True)
class Row:
    """One prompt of a heat map, and how many of its tokens before and after are not shown."""

    example: Example
    cells: tuple[Cell, ...]
    before: int
    after: int


@dataclass(frozen=True)
class Heat:
    """One set's best feature on its strongest prompts."""

    set: str
    best: FeatureContrast
    found: Examples
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Plot:
    """One set's plot."""

    set: str
    svg: Markup


@dataclass(frozen=True)
class Page:
    """All that the template shows. Without two sets that can be compared, `contrast` is None and `refusal` says why."""

    run: Run
    settings: ContrastSettings
    profile: Profile
    contrast: Contrast | None
    refusal: str
    best: int | None
    rows_a_set: int
    heats: tuple[Heat, ...]
    norm_plots: tuple[Plot, ...]
    score_plots: tuple[Plot, ...]

    @property
    def warnings(self) -> list[str]:
        """All warnings of the analysis."""
        return [*self.profile.warnings, *(self.contrast.warnings if self.contrast else [])]

    @property
    def against(self) -> str | None:
        """The set that others are compared with pair by pair, where prompts are paired."""
        return next((one.paired.against for one in self.profile.sets.values() if one.paired), None)

    @property
    def sinks(self) -> list[Sink]:
        """The sinks that the statistics leave out and position 0 does not explain."""
        masking = self.settings.masking
        return (
            []
            if masking.keep_sinks
            else [s for s in self.profile.sinks if s.pos > 0 or masking.keep_pos0]
        )

    @property
    def shown_sinks(self) -> list[Sink]:
        """The first of them, those furthest over the median."""
        return self.sinks[:_SINKS]

    def track(self, value: float) -> str:
        """Where a norm stands between the smallest and the largest of the table, on a logarithmic scale, in percent."""
        low, high = _norm_limits(self.profile)
        return f"{100 * math.log(value / low) / math.log(high / low):.1f}" if low < value else "0"


def render(run: Run) -> str:
    """The page as HTML."""
    import jinja2

    files = resources.files("saescope.surfaces.report")
    read = {name: (files / name).read_text(encoding="utf-8") for name in ("page.html", "page.css")}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(read),
        autoescape=True,
        finalize=_harmless,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent, number=_number, count="{:,}".format, ranges=_ranges, compact=_compact
    )
    environment.filters.update(first_confirmed=first_confirmed, plain="{:g}".format, short=_short)
    page = gather(run)
    values = {
        "page": page,
        "run": run,
        "css": Markup(read["page.css"]),
        "name": run.path.resolve().name,
    }
    return environment.get_template("page.html").render(**values, quote=shlex.quote).lstrip()


def gather(run: Run) -> Page:
    """Everything the page shows, from the run's own settings where its command had some."""
    settings = asked(run)
    rows_a_set = max(1, min(_ROWS_A_SET, _FEATURE_ROWS // (len(run.layers) * len(run.sets))))
    # As many rows as asked for are searched for a confirmed feature, as many as fit are shown.
    settings = replace(settings, n_top=max(settings.n_top, _ROWS_A_SET))
    profiled = profile(run, settings.masking)
    found, refusal = _contrast(run, settings)
    best = best_layer(found) if found else None
    with plots.styled():
        norm_plots = _norm_plots(run, profiled)
        score_plots = _score_plots(found) if found and len(run.layers) > 1 else ()
    return Page(
        run=run,
        settings=settings,
        profile=profiled,
        contrast=found,
        refusal=refusal,
        best=best,
        rows_a_set=rows_a_set,
        heats=_heats(run, found.layers[best].sets, settings.masking)
        if found and best is not None
        else (),
        norm_plots=norm_plots,
        score_plots=score_plots,
    )


def asked(run: Run) -> ContrastSettings:
    """The settings of the contrast that made the run, so that its page says what that said; else the usual ones.

    Whatever the command was, its rules of which positions count are kept.
    """
    try:
        command = run.manifest["command"]
        options = dict(command["options"])
        given = dict(options.get("settings") or {})
        masking = Masking(**(given.pop("masking", None) or options.get("masking") or {}))
        return (
            ContrastSettings(**given, masking=masking)
            if command["verb"] == "contrast"
            else ContrastSettings(masking=masking)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"the manifest of {run.path} is damaged: its command cannot be read; make it again"
        ) from error


def best_layer(found: Contrast) -> int:
    """The layer whose best features set the sets apart most, by discovery prompts: held-out figures stay unbiased."""
    return max(
        found.layers, key=lambda n: sum(_discovery_score(s) for s in found.layers[n].sets.values())
    )


def first_confirmed(one: SetContrast) -> FeatureContrast | None:
    """The confirmed feature that is best on the discovery prompts."""
    return next((feature for feature in one.features if feature.confirmed), None)


def _discovery_score(one: SetContrast) -> float:
    return one.features[0].discovery_score if one.features else 0.0


def _contrast(run: Run, settings: ContrastSettings) -> tuple[Contrast | None, str]:
    try:
        return contrast(run, settings), ""
    except PromptError as error:
        return None, str(error).replace(
            str(run.path), "this run"
        )  # where it lies is not on the page


def _heats(run: Run, sets: dict[str, SetContrast], masking: Masking) -> tuple[Heat, ...]:
    prompts = max(1, min(_PROMPTS_A_SET, _PROMPT_BLOCKS // len(sets)))
    best = {
        name: first_confirmed(one) or next(iter(one.features), None) for name, one in sets.items()
    }
    shown = {
        name: feature
        for name, feature in list(best.items())[:_PROMPT_BLOCKS]
        if feature is not None
    }
    found = {
        name: examples(run, feature.feature, masking, n=prompts) for name, feature in shown.items()
    }
    return tuple(
        Heat(
            name,
            shown[name],
            one,
            tuple(_row(example, one.examples[0].strongest) for example in one.examples),
        )
        for name, one in found.items()
    )


def _row(example: Example, largest: float) -> Row:
    """A prompt's tokens, or so many of them around the strongest one."""
    tokens = example.tokens
    peak = next(
        n
        for n, token in enumerate(tokens)
        if token.masked is None and token.act == example.strongest
    )
    start = max(0, min(peak - _TOKENS // 2, len(tokens) - _TOKENS))
    shown = tokens[start : start + _TOKENS]
    return Row(
        example, tuple(_cell(t, largest) for t in shown), start, len(tokens) - start - len(shown)
    )


def _cell(token: TokenAct, largest: float) -> Cell:
    level = max(1, min(_LEVELS, math.ceil(_LEVELS * token.act / largest))) if token.act > 0 else 0
    label = f"“{_short(token.text)}”, position {token.pos}: {_number(token.act) if token.act > 0 else 'does not fire'}"
    if token.masked:
        return Cell(_short(token.text), "m", f"{label}; masked ({token.masked})")
    return Cell(_short(token.text), str(level), label)


def _norm_limits(profiled: Profile) -> tuple[float, float]:
    """The range that all norms of the run lie in, with a little room, for logarithmic scales."""
    norms = [norm for one in profiled.sets.values() for norm in one.layers.values()]
    means = [value for n in norms for value in (n.pos0_norm_mean, n.later_norm_mean)]
    medians = [value for n in norms for value in (n.pos0_norm_median, n.later_norm_median)]
    positive = [value for value in means + medians if value is not None and 0 < value < math.inf]
    return (min(positive) / 1.3, max(positive) * 1.3) if positive else (0.5, 2.0)


def _norm_plots(run: Run, profiled: Profile) -> tuple[Plot, ...]:
    if len(run.layers) < 2:
        return ()
    limits = _norm_limits(profiled)
    return tuple(
        Plot(
            name,
            plots.norms_plot(
                f"n{i}", one.layers, limits, f"residual norms of {_shown(name)} by layer"
            ),
        )
        for i, (name, one) in enumerate(list(profiled.sets.items())[:_PLOTS])
    )


def _score_plots(found: Contrast) -> tuple[Plot, ...]:
    names = list(next(iter(found.layers.values())).sets)[:_PLOTS]
    tops = {name: _tops(name, found.layers) for name in names}
    ends = [feature.holdout_score_ci[0] for one in tops.values() for feature in one.values()]
    low = min(0.0, *ends) - 0.03 if ends else 0.0
    return tuple(
        Plot(
            name, plots.score_plot(f"s{i}", top, low, f"held-out score of {_shown(name)} by layer")
        )
        for i, (name, top) in enumerate(tops.items())
        if top
    )


def _tops(name: str, layers: dict[int, LayerContrast]) -> dict[int, FeatureContrast]:
    """The feature that is best on the discovery prompts, by layer."""
    return {
        n: layer.sets[name].features[0] for n, layer in layers.items() if layer.sets[name].features
    }


def _harmless(value: Any) -> Any:
    """Whatever the template prints: text that is not the page's own without invisible characters."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _short(text: str) -> str:
    return text if len(text) <= _TOKEN_LENGTH else f"{text[: _TOKEN_LENGTH - 1]}…"


def _shown(name: str) -> str:
    return visible(_short(name))


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}"


def _number(value: float | None) -> str:
    """Four figures, all of them written, so that columns line up."""
    if value is None:
        return "–"
    return f"{value:#.4g}" if abs(value) < 1000 or abs(value) >= 1e7 else f"{value:,.0f}"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _ranges(layers: Sequence[int]) -> str:
    """Numbers with runs of neighbours drawn together: 0–5, 8."""
    runs = [
        [n for _, n in run] for _, run in groupby(enumerate(layers), key=lambda at: at[1] - at[0])
    ]
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
