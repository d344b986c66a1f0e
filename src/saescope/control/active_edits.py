"""The edits of one `steered` context: checked against the model, bound to tensors, by layer."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from saescope.control.edits import Edit
from saescope.control.formulae import EditTensors, bind_edits
from saescope.control.positions import PositionRule
from saescope.control.readouts import ActivationReader, WatchedFeature, condition_reader
from saescope.control.receipts import Receipt
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.errors import EditError
from saescope.sources.catalog import SaeSpec

SaeOfLayer = Mapping[int, Sae]


class ConditionSite(NamedTuple):
    """Layer, column and threshold of a condition's activation."""

    layer: int
    column: int
    above: float


@dataclass(frozen=True, eq=False)
class LayerTargets:
    """Effective edits of one layer, with their indices in the receipt."""

    tensors: EditTensors
    indices: tuple[int, ...]
    rules: tuple[PositionRule, ...]
    conditions: tuple[ConditionSite | None, ...]

    @property
    def conditional(self) -> bool:
        """Whether any edit has a condition."""
        return any(site is not None for site in self.conditions)


@dataclass(frozen=True, eq=False)
class ActiveEdits:
    """The edits of one `steered` context by layer, the readers of their conditions, their receipt.

    `key` identifies the edits, to validate KV caches; it is None if no edit has an effect. `rows`
    are the rows of a batch that they edit, None for all.
    """

    lm: LM
    layers: Mapping[int, LayerTargets]
    watched: Mapping[int, ActivationReader]
    receipt: Receipt
    key: Hashable
    rows: range | None = None

    @property
    def hooked_layers(self) -> set[int]:
        """Layers that edits change or conditions read."""
        return self.layers.keys() | self.watched.keys()


class _Key(NamedTuple):
    """Identifies edits: equal keys mean equal changes."""

    edits: tuple[Edit, ...]
    random_seed: int | None
    saes: tuple[SaeSpec, ...]


def activate(
    lm: LM,
    saes: Sequence[Sae],
    edits: Sequence[Edit],
    random_seed: int | None,
    rows: range | None = None,
) -> ActiveEdits:
    """Return the edits bound to tensors; with `random_seed`, along random directions.

    Random directions have the lengths of those that they replace. Raises EditError if an edit does
    not match `lm` or `saes`.
    """
    sae_of = {sae.spec.layer: sae for sae in saes}
    for edit in edits:
        _check_fit(lm, edit, sae_of)
    effective = {index: edit for index, edit in enumerate(edits) if not edit.is_noop}
    watched: dict[int, list[WatchedFeature]] = {}
    targets = {}
    for layer in sorted({edit.layer for edit in effective.values()}):
        layer_edits = {index: edit for index, edit in effective.items() if edit.layer == layer}
        tensors = bind_edits(list(layer_edits.values()), sae_of.get(layer), device=lm.device)
        if random_seed is not None:
            tensors = tensors.along_random_directions(random_seed)
        targets[layer] = _layer_targets(layer_edits, tensors, watched)
    readers = {layer: condition_reader(read, sae_of[layer]) for layer, read in watched.items()}
    key = _key(tuple(effective.values()), random_seed, sae_of)
    return ActiveEdits(lm, targets, readers, _receipt(edits, sae_of), key, rows)


def _layer_targets(
    layer_edits: Mapping[int, Edit],
    tensors: EditTensors,
    watched: dict[int, list[WatchedFeature]],
) -> LayerTargets:
    edits = layer_edits.values()
    rules = tuple(PositionRule(edit.scope, edit.skip_sinks) for edit in edits)
    conditions = tuple(_condition_site(edit, watched) for edit in edits)
    return LayerTargets(tensors, tuple(layer_edits), rules, conditions)


def _condition_site(edit: Edit, watched: dict[int, list[WatchedFeature]]) -> ConditionSite | None:
    """Add the condition's feature to those watched at its layer, and return where it is read."""
    condition = edit.condition
    if condition is None:
        return None
    layer = condition.feature.layer
    feature = WatchedFeature(condition.feature, topk=edit.gate == "topk")
    columns = watched.setdefault(layer, [])
    if feature not in columns:
        columns.append(feature)
    return ConditionSite(layer, columns.index(feature), condition.above)


def _key(effective: tuple[Edit, ...], random_seed: int | None, sae_of: SaeOfLayer) -> _Key | None:
    if not effective:
        return None
    layers = {layer for edit in effective for layer in edit.sae_layers}
    return _Key(effective, random_seed, tuple(sae_of[layer].spec for layer in sorted(layers)))


def _receipt(edits: Sequence[Edit], sae_of: SaeOfLayer) -> Receipt:
    """Return a receipt with the read-out gain and length of each edit, effective or not."""
    tensors = [bind_edits([edit], sae_of.get(edit.layer)) for edit in edits]
    gains = [float(edit_tensors.gain) for edit_tensors in tensors]
    norms = [float(edit_tensors.norms) for edit_tensors in tensors]
    return Receipt(edits, gains, norms)


def _check_fit(lm: LM, edit: Edit, sae_of: SaeOfLayer) -> None:
    """Raise EditError if an edit does not match this model, naming what differs."""
    name, repo, d_model = f"edit of {edit.name}", lm.spec.repo, lm.spec.d_model
    last = len(lm.blocks) - 1
    if edit.layer > last:
        raise EditError(f"{name}: {repo} was loaded up to layer {last}")
    if edit.direction is not None:
        size = len(edit.direction.values)
        if size != d_model:
            raise EditError(
                f"{name}: direction has {size} dimensions, the residual of {repo} has {d_model}"
            )
    if edit.about is not None and len(edit.about.values) != d_model:
        raise EditError(
            f"{name}: the mean it acts about has {len(edit.about.values)} dimensions, the residual "
            f"of {repo} has {d_model}"
        )
    condition = edit.condition
    if lm.streamed is not None and condition is not None and condition.feature.layer != edit.layer:
        raise EditError(
            f"{name}: {repo} is streamed, one layer per pass, so its condition must read layer "
            f"{edit.layer}, not {condition.feature.layer}"
        )
    for layer in sorted(edit.sae_layers):
        if layer not in sae_of:
            raise EditError(f"{name}: no SAE for layer {layer} was passed")
        size = sae_of[layer].spec.d_model
        if size != d_model:
            raise EditError(
                f"{name}: SAE reads {size} dimensions, the residual of {repo} has {d_model}"
            )
