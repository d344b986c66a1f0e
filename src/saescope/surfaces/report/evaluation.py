"""An evaluation as one self-contained HTML page, and its plot as a file, both from its JSON."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saescope.errors import PromptError
from saescope.surfaces.report.frontier import MARKS, frontier, frontier_file
from saescope.surfaces.report.templates import css, load_template

_MAX_REPLIES = 12
_PLOT_LABEL = "how often the behaviour shows against damage, by strength of the edits"


def render_evaluation(document: Mapping[str, Any]) -> str:
    """Return the page as HTML."""
    arms = {arm["name"] for arm in document["conditions"]}
    return load_template("evaluation.html").render(
        css=css(),
        document=document,
        marks=[mark for name, mark in MARKS.items() if name in arms],
        plot=frontier(document, _PLOT_LABEL),
        replies=_sample_replies(document),
    )


def picture(document: Mapping[str, Any], *, png: bool) -> bytes:
    """Return the plot as a PNG or SVG file; raises PromptError if there is nothing to plot."""
    plot = frontier_file(document, "png" if png else "svg")
    if plot is None:
        raise PromptError(
            "no damage was measured, so there is no plot: "
            "give neutral texts, and edits that change something"
        )
    return plot


@dataclass(frozen=True)
class ReplyPair:
    """The replies to one prompt without and with edits, and the labels of both."""

    set: str
    prompt: str
    before: str
    after: str
    label_before: str | None
    label_after: str | None


def _sample_replies(document: Mapping[str, Any]) -> list[ReplyPair]:
    """Return some replies of each set, those whose label changed first."""
    edited = f"edits x{document['chosen']['strength']:g}"
    pairs = [_reply_pair(reply, edited) for reply in document["replies"]]
    pairs.sort(key=lambda pair: pair.label_before == pair.label_after)
    n_sets = len({pair.set for pair in pairs})
    per_set = max(1, _MAX_REPLIES // max(1, n_sets))
    sample = []
    n_sampled = Counter[str]()
    for pair in pairs:
        if n_sampled[pair.set] < per_set:
            n_sampled[pair.set] += 1
            sample.append(pair)
    return sample


def _reply_pair(reply: Mapping[str, Any], edited: str) -> ReplyPair:
    texts, labels = reply["by"], reply["labels"]
    return ReplyPair(
        reply["set"], reply["prompt"], texts["none"], texts[edited], labels["none"], labels[edited]
    )
