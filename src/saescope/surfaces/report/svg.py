"""matplotlib figures as inline SVG that takes its colours from the page and needs no fonts."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

# matplotlib draws in these placeholders; the page replaces them by the colours of its theme.
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
def page_style() -> Iterator[None]:
    """Draw in the style of the page, whatever the user's own matplotlib settings are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def as_element(figure: "Figure", name: str, label: str) -> Markup:
    """Return a figure as an element of the page.

    It has no size of its own, its ids start with `name`, and screen readers read `label`.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    view_box = re.search(r'viewBox="([^"]+)"', svg)
    assert view_box is not None
    # matplotlib's style element would apply to the whole page.
    body = svg[svg.index("</style>") :].partition("</defs>")[2].strip()
    body = _clean(_with_unique_ids(body, name))
    for placeholder, colour in _PAGE_COLOURS.items():
        body = body.replace(placeholder, colour)
    opening = Markup('<svg viewBox="{}" role="img" aria-label="{}"><title>{}</title>')
    return opening.format(view_box[1], label, label) + Markup(body)


def _with_unique_ids(body: str, name: str) -> str:
    """Prefix the ids that something refers to, and remove the others."""
    used = set(re.findall(r'(?:url\(#|xlink:href="#)([^)"]+)', body))

    def prefixed(match: re.Match[str]) -> str:
        if match[1] not in used:
            return ""
        return f' id="{name}-{match[1]}"'

    body = re.sub(r' id="([^"]+)"', prefixed, body)
    return body.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')


def _clean(body: str) -> str:
    """Remove what draws nothing: comments, indentation, rotations by 0, and the font."""
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"(?<=\n) +", "", body)
    body = re.sub(r' transform="rotate\(-0 [^"]+"', "", body)
    return body.replace("font-family: 'DejaVu Sans'; ", "")
