"""Decide which edits weights can express, and find the closest such edit for the others."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from saescope.control.baking.bake_plan import EditVectors
from saescope.control.edits import Edit
from saescope.control.formulae import bind_edits
from saescope.engine.sae import Sae
from saescope.errors import EditError


def why_not_bakeable(edit: Edit) -> str | None:
    """Return the reason the edit cannot be expressed in weights, or None."""
    if edit.op in ("scale", "clamp"):
        return f"{edit.op} depends on the feature's activation, which needs an encoder at run time"
    if edit.condition is not None:
        return f"it acts only if {edit.condition}, but weights act at every position"
    if edit.scope != "all":
        return f"its scope is {edit.scope}, but weights act at every position"
    return None


def reads_another_layer(edit: Edit) -> bool:
    """Return whether the edit's condition reads another layer, which a streamed model cannot do."""
    return edit.condition is not None and edit.condition.feature.layer != edit.layer


def nearest_bakeable(edit: Edit) -> Edit:
    """Return the closest edit that weights can express; raise EditError if none is close."""
    if why_not_bakeable(edit) is None:
        return edit
    if edit.op in ("add", "project", "readout_clamp"):
        return replace(edit, scope="all", when=None)
    removed_share = None
    if edit.op == "scale" and edit.amount < 0:
        removed_share = min(1.0, -edit.amount)
    if edit.op == "clamp" and edit.amount == 0:
        removed_share = 1.0
    if removed_share is None:
        raise EditError(
            f"edit of {edit.name}: {edit.op} {edit.amount:g} amplifies an activation, which no "
            "fixed weights approximate: use an add edit of the same feature, or steer it at run "
            "time"
        )
    return replace(edit, op="project", strength=removed_share, scope="all", gate="relu", when=None)


def edit_vectors(
    edits: Sequence[Edit], saes: Sequence[Sae], *, n_layers: int, d_model: int
) -> list[EditVectors]:
    """Return the edits with their vectors; raise EditError for one that does not fit the model."""
    sae_of = {sae.spec.layer: sae for sae in saes}
    vectors = []
    for edit in edits:
        if edit.layer >= n_layers:
            raise EditError(f"edit of {edit.name}: the model has layers 0-{n_layers - 1}")
        sae = sae_of.get(edit.layer) if edit.feature is not None else None
        bound = bind_edits([edit], sae, torch.float64, torch.device("cpu"))
        [w], [b], [d] = bound.reader.readout.w, bound.reader.readout.b, bound.write_directions
        if len(d) != d_model:
            raise EditError(
                f"edit of {edit.name}: its vectors have width {len(d)}, but d_model is {d_model}"
            )
        vectors.append(EditVectors(edit, w, b, d))
    return vectors
