"""The mean residual over neutral text, measured once per model and text, for requests with edits.

What was measured is remembered in the user's cache folder, by everything that decides it.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from saescope.control.about import about_means
from saescope.control.edits import Edit, EditSet
from saescope.control.means_file import means_of
from saescope.errors import PromptError, SourceError
from saescope.jobs.edits import EditInputs
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.judging import read_all_prompts
from saescope.jobs.reporter import Reporter
from saescope.sources.file_cache import recall, remember
from saescope.sources.neutral_mean import NeutralMean
from saescope.sources.prompts import Prompt, PromptSet, fingerprint
from saescope.store.resume_cache import key_of

if TYPE_CHECKING:
    from saescope.engine.lm import LM

# Measures the means of some layers; called only if an edit needs one.
MeasureMeans = Callable[[Sequence[int]], Mapping[int, NeutralMean]]
_ABOUT_ZERO = (
    "project edits of the file carry no mean, so they act about zero: about='mean' measures it"
)


def measured_means(
    lm: "LM", layers: Sequence[int], texts: Sequence[Prompt], reporter: Reporter
) -> dict[int, NeutralMean]:
    """Return the means of these layers, each remembered or else measured now."""
    from saescope.engine.neutral_means import neutral_means

    keys = {layer: _key(lm, layer, texts) for layer in sorted(set(layers))}
    means = {layer: _recalled(layer, key) for layer, key in keys.items()}
    missing = [layer for layer, mean in means.items() if mean is None]
    if missing:
        with reporter.progress("mean residual on neutral text"):
            measured = neutral_means(lm, missing, texts)
        for layer, mean in measured.items():
            remember(keys[layer], _to_plain(mean))
        means |= measured
    return {layer: mean for layer, mean in means.items() if mean is not None}


def with_means(
    inputs: EditInputs,
    edit_set: EditSet,
    measure: MeasureMeans,
    reporter: Reporter,
    *,
    every_op: bool = True,
) -> EditSet:
    """Return the edits of these inputs with the means that they act about.

    A mean in the edits file is kept. Edits in words get the measured one, those of a file only if
    `about` is "mean": a file without a mean keeps its meaning. `every_op` also gives edits of other
    ops the mean, to compare their size with the spread.
    """
    if inputs.about == "zero":
        return replace(edit_set, edits=tuple(replace(edit, about=None) for edit in edit_set.edits))
    n_stored = len(edit_set.edits) - len(inputs.edit)
    stored, in_words = edit_set.edits[:n_stored], edit_set.edits[n_stored:]
    keeps_zero = inputs.about is None and any(map(_is_about_zero, stored))
    if keeps_zero:
        reporter.note(_ABOUT_ZERO)

    def wants(edit: Edit, *, from_file: bool) -> bool:
        if edit.about is not None:
            return False
        if edit.op != "project":
            return every_op
        return inputs.about == "mean" or not from_file

    chosen = [
        *(wants(edit, from_file=True) for edit in stored),
        *(wants(edit, from_file=False) for edit in in_words),
    ]
    means = dict(means_of(edit_set.edits))
    pairs = list(zip(edit_set.edits, chosen, strict=True))
    missing = {edit.layer for edit, is_chosen in pairs if is_chosen} - means.keys()
    needed = any(is_chosen and edit.op == "project" for edit, is_chosen in pairs)
    if missing:
        means |= _measured(measure, sorted(missing), needed=needed)
    edits = [about_means([edit], means)[0] if is_chosen else edit for edit, is_chosen in pairs]
    return replace(edit_set, edits=tuple(edits))


def _measured(
    measure: MeasureMeans, layers: Sequence[int], *, needed: bool
) -> Mapping[int, NeutralMean]:
    """Return the means; none if they only serve to compare sizes and no text can give them."""
    try:
        return measure(layers)
    except PromptError:
        if needed:
            raise
        return {}


def with_means_for_weights(
    inputs: EditInputs,
    edit_set: EditSet,
    models: ModelInputs,
    neutral: str,
    reporter: Reporter,
) -> EditSet:
    """Return the edits with the means that weights act about: those of a file, or measured ones.

    Only `about="mean"` has means measured. Weights have no place for a mean's constant but the
    embedding, from which every layer below the edit's reads it too, and that can cost far more
    than acting about zero. Edits by activation get a mean too, since the nearest edit of weights is
    a projection. The model is loaded only if a mean is missing.
    """
    if inputs.about is None:
        return edit_set

    def measure(layers: Sequence[int]) -> Mapping[int, NeutralMean]:
        lm = models.load_model(layers, reporter)
        return measured_means(lm, layers, read_all_prompts(neutral), reporter)

    by_activation = any(edit.op in ("scale", "clamp") for edit in edit_set.edits)
    return with_means(inputs, edit_set, measure, reporter, every_op=by_activation)


def _is_about_zero(edit: Edit) -> bool:
    return edit.op == "project" and edit.about is None


def _key(lm: "LM", layer: int, texts: Sequence[Prompt]) -> str:
    from saescope.engine.numerics import library_versions, numerics

    key = key_of(
        "neutral mean 1",
        lm.whole_fingerprint,
        str(lm.dtype),
        lm.device.type,
        [library_versions(), numerics(lm.device)],
        layer,
        fingerprint([PromptSet("", tuple(texts))]),
    )
    return f"means/{key[:32]}"


def _recalled(layer: int, key: str) -> NeutralMean | None:
    stored = recall(key)
    try:
        values = np.frombuffer(base64.b64decode(stored["values"]), np.float32)
        return NeutralMean(
            layer, values, float(stored["spread"]), int(stored["positions"]), str(stored["source"])
        )
    except (
        KeyError,
        TypeError,
        ValueError,
        SourceError,
    ):  # nothing is remembered, or it is damaged
        return None


def _to_plain(mean: NeutralMean) -> dict[str, Any]:
    return {
        "values": base64.b64encode(mean.values.tobytes()).decode(),
        "spread": mean.spread,
        "positions": mean.positions,
        "source": mean.source,
    }
