"""Heat maps: the tokens of a prompt, coloured by a feature's activation."""

import math
from dataclasses import dataclass

from saescope.analysis.examples import Example, TokenAct
from saescope.analysis.report_findings import BestFeature, Excerpt
from saescope.surfaces.report.templates import number, short

_N_LEVELS = 8


@dataclass(frozen=True)
class HeatMap:
    """The heat map of one set's best feature, a row per prompt."""

    found: BestFeature
    rows: tuple["Row", ...]


@dataclass(frozen=True)
class Row:
    """The cells of one prompt."""

    example: Example
    excerpt: Excerpt
    cells: tuple["Cell", ...]


@dataclass(frozen=True)
class Cell:
    """One token: its text, its colour (0 is off, 8 the largest, m masked), and its label.

    The text is empty if a later token completes the token's character.
    """

    text: str
    level: str
    label: str


def heat_map(found: BestFeature) -> HeatMap:
    """Return the heat map of a feature, scaled to its largest activation."""
    rows = []
    for excerpt in found.excerpts:
        largest = found.excerpts[0].example.strongest
        cells = tuple(_cell(token, largest) for token in excerpt.tokens)
        rows.append(Row(excerpt.example, excerpt, cells))
    return HeatMap(found, tuple(rows))


def _cell(token: TokenAct, largest: float) -> Cell:
    text = short(token.text)
    act = number(token.act) if token.act > 0 else "does not fire"
    name = f"“{text}”" if text else "part of the next character"
    label = f"{name}, position {token.pos}: {act}"
    if token.masked:
        return Cell(text, "m", f"{label}; masked ({token.masked})")
    level = min(_N_LEVELS, math.ceil(_N_LEVELS * token.act / largest))
    return Cell(text, str(level), label)
