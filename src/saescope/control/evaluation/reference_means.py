"""The mean residuals of an evaluation: those it was given, or measured on its neutral text."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from saescope.control.edits import Edit
from saescope.control.evaluation.settings import ReferenceData
from saescope.control.means_file import means_of
from saescope.engine.lm import LM
from saescope.engine.neutral_means import neutral_means


def with_means(
    lm: LM, layers: Collection[int], reference: ReferenceData, edits: Sequence[Edit] = ()
) -> ReferenceData:
    """Return the reference data with the mean residual of every one of these layers.

    A mean that an edit carries is kept. Nothing is measured if the reference data have means.
    """
    if reference.means is not None:
        return reference
    means = means_of(edits)
    missing = sorted(set(layers) - means.keys())
    if missing:
        means |= neutral_means(lm, missing, reference.neutral or None)
    return replace(reference, means=means)
