"""Which point edits act about: the mean residual over neutral text, or zero. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from saescope.control.edits import Edit
from saescope.sources.neutral_mean import NeutralMean

About = Literal["mean", "zero"]


def about_means(edits: Sequence[Edit], means: Mapping[int, NeutralMean]) -> tuple[Edit, ...]:
    """Return the edits with the means of their layers; an edit of another layer stays as it is."""
    return tuple(replace(edit, about=means.get(edit.layer, edit.about)) for edit in edits)


def with_spreads(edits: Sequence[Edit], means: Mapping[int, NeutralMean]) -> tuple[Edit, ...]:
    """Return the edits with means for their receipts, none of them doing anything else than before.

    A project edit stays as it is: about zero, if it carries no mean.
    """
    known = {edit.layer: edit.about for edit in edits if edit.about is not None}
    means = {**means, **known}
    return tuple(edit if edit.op == "project" else about_means([edit], means)[0] for edit in edits)


def about_name(edit: Edit) -> About | None:
    """Return what a project edit acts about; None for other ops, which act about nothing."""
    if edit.op != "project":
        return None
    return "zero" if edit.about is None else "mean"
