"""Which edits weights can take over, and what is nearest to those they cannot. Knows no tensors of models."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from saescope.control.baking.methods import EditVectors
from saescope.control.edits import Edit
from saescope.control.formulae import bind_edits
from saescope.engine.sae import Sae
from saescope.errors import EditError


def why_not_bakeable(edit: Edit) -> str | None:
    """Why no weights do what the edit does; None where some do."""
    if edit.op in ("scale", "clamp"):
        return f"{edit.op} acts by how strongly the feature fires, and no stock weights do that"
    if edit.condition is not None:
        return f"it acts only when {edit.condition}, and weights act at every position"
    if edit.scope != "all":
        return f"its scope is {edit.scope}, and weights act at every position"
    return None


def reads_another_layer(edit: Edit) -> bool:
    """Whether the edit's condition is of another layer, so that a streamed model cannot be steered by it."""
    return edit.condition is not None and edit.condition.feature.layer != edit.layer


def nearest_bakeable(edit: Edit) -> Edit:
    """The edit that weights can take over and that is nearest; raises EditError where none comes near."""
    if why_not_bakeable(edit) is None:
        return edit
    if edit.op in ("add", "project", "readout_clamp"):
        return replace(edit, scope="all", when=None)
    if edit.op == "scale" and edit.amount < 0:
        return replace(
            edit, op="project", strength=min(1.0, -edit.amount), scope="all", gate="relu", when=None
        )
    if edit.op == "clamp" and edit.amount == 0:
        return replace(edit, op="project", strength=1.0, scope="all", gate="relu", when=None)
    raise EditError(
        f"edit of {edit.name}: {edit.op} {edit.amount:g} strengthens what fires, which no weights come near to: use an "
        "add edit of the same feature, or steer it at run time"
    )


def edit_vectors(
    edits: Sequence[Edit], saes: Sequence[Sae], *, n_layers: int, d_model: int
) -> list[EditVectors]:
    """The edits with their vectors; raises EditError for one that is not of this model."""
    sae_of = {sae.spec.layer: sae for sae in saes}
    found = []
    for edit in edits:
        if edit.layer >= n_layers:
            raise EditError(f"edit of {edit.name}: the model has layers 0-{n_layers - 1}")
        own = sae_of.get(edit.layer) if edit.feature is not None else None
        one = bind_edits([edit], own, torch.float64, torch.device("cpu"))
        if one.d.shape[1] != d_model:
            raise EditError(
                f"edit of {edit.name}: it is {one.d.shape[1]} wide, the model's residuals {d_model}"
            )
        found.append(EditVectors(edit, one.reader.readout.w[0], one.reader.readout.b[0], one.d[0]))
    return found
