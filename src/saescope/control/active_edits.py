"""The edits of one `steered` block, checked against the model and bound to tensors, by layer."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from saescope.control.edits import Edit
from saescope.control.formulae import (
    ActivationReader,
    LayerEdits,
    WatchedFeature,
    bind_edits,
    condition_reader,
)
from saescope.control.positions import PositionRule
from saescope.control.receipts import Receipt
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.errors import EditError
from saescope.sources.catalog import SaeSpec

SaeOfLayer = Mapping[int, Sae]


class ConditionSite(NamedTuple):
    """Where a condition reads: a layer, a column of its reader, and the number to exceed."""

    layer: int
    column: int
    above: float


@dataclass(frozen=True, eq=False)
class EditedLayer:
    """The edits of one layer that change anything, and the place of each one in the receipt."""

    bound: LayerEdits
    numbers: tuple[int, ...]
    rules: tuple[PositionRule, ...]
    conditions: tuple[ConditionSite | None, ...]

    @property
    def conditional(self) -> bool:
        """Whether any edit has a condition."""
        return any(site is not None for site in self.conditions)


@dataclass(frozen=True, eq=False)
class ActiveEdits:
    """The edits of one `steered` block: by layer, what their conditions read, and their receipt.

    `key` is equal for blocks whose edits are the same; it is None if nothing is changed.
    """

    lm: LM
    layers: Mapping[int, EditedLayer]
    watched: Mapping[int, ActivationReader]
    receipt: Receipt
    key: Hashable

    @property
    def hooked_layers(self) -> set[int]:
        """Layers that are changed or read."""
        return self.layers.keys() | self.watched.keys()


class _Key(NamedTuple):
    """What makes the edits of two blocks the same."""

    edits: tuple[Edit, ...]
    random_seed: int | None
    saes: tuple[SaeSpec, ...]


def activate(
    lm: LM, saes: Sequence[Sae], edits: Sequence[Edit], random_seed: int | None
) -> ActiveEdits:
    """Bind edits to tensors; raises EditError for one that does not belong to `lm` and `saes`.

    With `random_seed` they write along random directions of the same lengths.
    """
    sae_of = {sae.spec.layer: sae for sae in saes}
    for edit in edits:
        _check_fit(lm, edit, sae_of)
    acting = {number: edit for number, edit in enumerate(edits) if not edit.is_noop}
    watched: dict[int, list[WatchedFeature]] = {}
    layers = {}
    for layer in sorted({edit.layer for edit in acting.values()}):
        of_layer = {number: edit for number, edit in acting.items() if edit.layer == layer}
        chosen = list(of_layer.values())
        bound = bind_edits(chosen, sae_of.get(layer), device=lm.device)
        if random_seed is not None:
            bound = bound.along_random_directions(random_seed)
        rules = tuple(PositionRule(edit.scope, edit.skip_sinks) for edit in chosen)
        conditions = tuple(_condition_site(edit, watched) for edit in chosen)
        layers[layer] = EditedLayer(bound, tuple(of_layer), rules, conditions)
    readers = {layer: condition_reader(read, sae_of[layer]) for layer, read in watched.items()}
    key = _key(tuple(acting.values()), random_seed, sae_of)
    return ActiveEdits(lm, layers, readers, _receipt(edits, sae_of), key)


def _condition_site(edit: Edit, watched: dict[int, list[WatchedFeature]]) -> ConditionSite | None:
    """Where an edit's condition will be read; its feature is added to those read at its layer."""
    condition = edit.condition
    if condition is None:
        return None
    layer = condition.feature.layer
    feature = WatchedFeature(condition.feature, topk=edit.gate == "topk")
    columns = watched.setdefault(layer, [])
    if feature not in columns:
        columns.append(feature)
    return ConditionSite(layer, columns.index(feature), condition.above)


def _key(acting: tuple[Edit, ...], random_seed: int | None, sae_of: SaeOfLayer) -> _Key | None:
    if not acting:
        return None
    layers = {layer for edit in acting for layer in edit.sae_layers}
    return _Key(acting, random_seed, tuple(sae_of[layer].spec for layer in sorted(layers)))


def _receipt(edits: Sequence[Edit], sae_of: SaeOfLayer) -> Receipt:
    """A receipt with each edit's read-out gain and length, whether it changes anything or not."""
    bound = [bind_edits([edit], sae_of.get(edit.layer)) for edit in edits]
    gains = [float(alone.gain) for alone in bound]
    norms = [float(alone.norms) for alone in bound]
    return Receipt(edits, gains, norms)


def _check_fit(lm: LM, edit: Edit, sae_of: SaeOfLayer) -> None:
    """Raises EditError for an edit that does not belong to this model, naming what differs."""
    name, repo, d_model = f"edit of {edit.name}", lm.spec.repo, lm.spec.d_model
    last = len(lm.blocks) - 1
    if edit.layer > last:
        raise EditError(f"{name}: {repo} was loaded up to layer {last}")
    if edit.direction is not None and len(edit.direction.values) != d_model:
        width = len(edit.direction.values)
        raise EditError(f"{name}: the direction is {width} wide, residuals of {repo} {d_model}")
    condition = edit.condition
    if lm.streamed is not None and condition is not None and condition.feature.layer != edit.layer:
        raise EditError(
            f"{name}: {repo} is streamed, one layer per pass, so a condition of another layer "
            "cannot be read"
        )
    for layer in sorted(edit.sae_layers):
        if layer not in sae_of:
            raise EditError(f"{name}: there is no SAE of layer {layer} here")
        width = sae_of[layer].spec.d_model
        if width != d_model:
            raise EditError(f"{name}: its SAE reads residuals {width} wide, {repo} has {d_model}")
