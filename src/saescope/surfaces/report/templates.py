"""The HTML templates of this folder, and how they write numbers and text."""

from collections.abc import Sequence
from importlib import resources
from itertools import groupby
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from saescope.strict_json import to_json
from saescope.surfaces.visible import visible

if TYPE_CHECKING:
    from jinja2 import Template

MISSING = "–"
_MAX_LENGTH = 60


def load_template(name: str) -> "Template":
    """Load a template, which escapes what it prints and knows the filters of this file."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        finalize=_harmless,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent,
        number=number,
        figure=figure,
        count="{:,}".format,
        plain="{:g}".format,
        short=short,
        ranges=ranges,
        compact=compact,
    )
    return environment.get_template(name)


def css() -> Markup:
    """Return the style sheet of all pages."""
    return Markup(_read("page.css"))


def percent(share: float | None, digits: int = 1) -> str:
    """Write a share between 0 and 1 in percent, without the sign."""
    if share is None:
        return MISSING
    return f"{100 * share:.{digits}f}"


def number(value: float | None) -> str:
    """Write four significant digits, with trailing zeros, so that columns line up."""
    if value is None:
        return MISSING
    if 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:#.4g}"


def figure(value: float | None) -> str:
    """Write two significant digits."""
    if value is None:
        return MISSING
    return f"{value:.2g}"


def short(text: str) -> str:
    """Cut a long text."""
    if len(text) <= _MAX_LENGTH:
        return text
    return f"{text[: _MAX_LENGTH - 1]}…"


def ranges(layers: Sequence[int]) -> str:
    """Write ascending numbers as ranges: `0–5, 8`."""
    # Neighbours have the same difference between value and position.
    groups = groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0])
    texts = []
    for _, group in groups:
        run = [layer for _, layer in group]
        text = str(run[0])
        if len(run) > 1:
            text += f"–{run[-1]}"
        texts.append(text)
    return ", ".join(texts)


def compact(value: Any) -> str:
    """Write plain values as JSON in one line."""
    return to_json(value)


def _read(name: str) -> str:
    folder = resources.files("saescope.surfaces.report")
    return (folder / name).read_text(encoding="utf-8")


def _harmless(value: Any) -> Any:
    """Escape the invisible characters of whatever a template prints."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return visible(value)
    return value
