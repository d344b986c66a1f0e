"""Verify numerically that no residual writer or reader was missed.

One block of each kind runs in float32, with a random direction projected out. If all writers are
projected, the block adds nothing along the direction, just as if the outputs of its parts were
projected. If all readers are projected too, its outputs for h and for h reflected along the
direction may differ along it alone (reflection keeps the norm).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from saescope.control.baking.methods import read_update, write_update
from saescope.control.baking.residual_map import ResidualMap, at_zeros, projection
from saescope.control.baking.weight_update import RoundingSums, WeightUpdate, apply_update
from saescope.engine.anatomy import EMBEDDING, Anatomy, Port
from saescope.engine.lm import LM
from saescope.engine.residual import replace_outputs
from saescope.engine.stream import first_block_input, run_block
from saescope.errors import SaescopeError, SourceError, first_line

# Relative to the largest value that a block adds: far above float32 noise, far below the effect of
# a missed matrix.
_TOLERANCE = 1e-3
_POSITIONS = 8
# Size of the probe's component along the direction, in units of sqrt(d_model).
_COMPONENT_SCALE = 0.25
_CHECKED_TOKENS = 64
_EMBEDDING_TOLERANCE = 0.02  # of a model in bfloat16


def check_anatomy(lm: LM, anatomy: Anatomy, gains: Mapping[str, Tensor], *, reads: bool) -> None:
    """Raise SourceError if an unknown parameter writes the residual or, if `reads`, reads it.

    `lm` is streamed and reaches up to the last kind of block.
    """
    for layer in anatomy.kinds:
        try:
            _check_block(_Block(lm, anatomy, layer), gains, reads=reads)
        except SaescopeError:
            raise
        except Exception as error:  # blocks raise whatever their architecture's code raises
            raise SourceError(
                f"architecture {anatomy.kind!r}: block {layer} cannot be checked, so edits cannot "
                f"be baked ({type(error).__name__}: {first_line(error)})"
            ) from error


@dataclass(frozen=True)
class _Block:
    """A block of an LM that can run alone."""

    lm: LM
    anatomy: Anatomy
    layer: int

    @property
    def path(self) -> str:
        """What stands before the block's own names in the decoder."""
        blocks = next(n for n, module in self.lm.model.named_modules() if module is self.lm.blocks)
        return f"{blocks}.{self.layer}."

    def ports(self, ports: Sequence[Port]) -> list[Port]:
        """Return those of the ports that belong to this block."""
        return [port for port in ports if port.layer == self.layer]

    def error(self, what: str, *, then: str = "cannot be baked") -> SourceError:
        """Return the refusal of an architecture whose block does something unknown."""
        return SourceError(
            f"architecture {self.anatomy.kind!r}: block {self.layer} {what}, so edits {then}"
        )


def _check_block(block: _Block, gains: Mapping[str, Tensor], *, reads: bool) -> None:
    writers = block.ports(block.anatomy.writes)
    readers = block.ports(block.anatomy.reads) if reads else []
    probe = _random_probe(_coordinates_read(block, readers, gains))
    updates = {port: write_update(port, probe.map, gains) for port in writers}
    updates |= {port: read_update(port, probe.map, gains) for port in readers}
    base, one, reflected = _outputs(block, [probe.base, probe.resid, probe.reflected], updates)
    largest = (base - probe.base).abs().max()
    # The component is spread over all coordinates: compare it with the largest single one.
    if not largest > 0 or not probe.along(base) <= _TOLERANCE * largest:
        raise block.error("writes to the residual by weights that are not known")
    if not any(port.norm for port in writers):
        [by_hooks] = _outputs(block, [probe.base], {}, sites=probe.map)
        if not (base - by_hooks).abs().max() <= _TOLERANCE * largest:
            raise block.error("adds more to the residual than the outputs of its known parts")
    difference = probe.map((one - reflected).double()).abs().max()
    if reads and not difference <= _TOLERANCE * largest:
        raise block.error(
            "reads the residual by weights or norms that are not known",
            then="cannot be baked into its readers: use method 'every-write'",
        )


def _coordinates_read(
    block: _Block, readers: Sequence[Port], gains: Mapping[str, Tensor]
) -> Bool[Tensor, "d_model"]:
    """Return the coordinates of the residual that no norm before these readers zeroes."""
    seen = torch.ones(block.anatomy.d_model, dtype=torch.bool)
    for port in readers:
        if port.norm is not None:
            seen &= ~at_zeros(gains[port.norm])
    if not seen.any():
        raise block.error(
            "has norms that zero every coordinate between them (γ = 0)",
            then="cannot be baked into its readers: use method 'every-write'",
        )
    return seen


@dataclass(frozen=True, eq=False)
class _Probe:
    """A random unit direction, its projection, and residuals that differ only along it.

    `base` has no component along the direction.
    """

    direction: Float[Tensor, "d_model"]
    map: ResidualMap
    base: Float[Tensor, "1 pos d_model"]
    resid: Float[Tensor, "1 pos d_model"]
    reflected: Float[Tensor, "1 pos d_model"]

    def along(self, resid: Tensor) -> Tensor:
        """Return the largest component along the direction."""
        return (resid.double() @ self.direction).abs().max()


def _random_probe(coordinates: Bool[Tensor, "d_model"]) -> _Probe:
    """Return a probe whose direction has no other coordinates than these."""
    d_model = len(coordinates)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    r = draw(d_model) * coordinates
    unit = r / r.norm()
    without_r = projection([r], [1.0])
    base = without_r(draw(1, _POSITIONS, d_model))
    component = unit * draw(1, _POSITIONS, 1) * r.norm() * _COMPONENT_SCALE
    return _Probe(
        unit, without_r, base.float(), (base + component).float(), (base - component).float()
    )


def _outputs(
    block: _Block,
    resids: Sequence[Tensor],
    updates: Mapping[Port, WeightUpdate],
    sites: ResidualMap | None = None,
) -> list[Tensor]:
    """Return the block's outputs (1, pos, d_model) with updated weights, in float32.

    With `sites`, the outputs of the parts that write are mapped instead.
    """

    def update_weights(module: nn.Module) -> None:
        state = {name: _as_float(tensor) for name, tensor in module.state_dict().items()}
        for port, update in updates.items():
            name = port.name.removeprefix(block.path)
            own = replace(update, axis=port.parameter_axis)
            chunks = apply_update(state[name], own, RoundingSums())
            flat = torch.cat([chunk.flatten() for chunk in chunks])
            state[name] = flat.reshape(state[name].shape)
        module.load_state_dict(state, assign=True)

    module = block.lm.blocks[block.layer]
    mapped: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
    if sites is not None:
        names = [name for layer, name in block.anatomy.sites if layer == block.layer]
        mapped = [(module.get_submodule(n.removeprefix(block.path)), sites) for n in names]
    on_device = [resid.to(block.lm.device) for resid in resids]
    with replace_outputs(mapped):
        outputs = run_block(block.lm, block.layer, on_device, update_weights)
    return [output.float().cpu() for output in outputs]


def _as_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def bias_factor(lm: LM, anatomy: Anatomy, module: str, *, alone: bool = False) -> float:
    """Return by how much an output bias of a module arrives in the residual after its block.

    It is 1 in most models, and 0.22 in Granite. `alone`: what the block's other parts add to the
    bias is not counted. Raises SourceError if the block adds anything but a multiple of the bias.
    """
    path = next(name for name, blocks in lm.model.named_modules() if blocks is lm.blocks)
    layer = int(module.removeprefix(f"{path}.").split(".")[0])
    block = _Block(lm, anatomy, layer)
    probe = _random_probe(torch.ones(anatomy.d_model, dtype=torch.bool))
    v = probe.direction.float() * anatomy.d_model**0.5
    others = [n for at, n in anatomy.sites if at == layer and not _is_inside(module, n)]
    silent = [(lm.model.get_submodule(name), torch.zeros_like) for name in others if alone]
    linear = lm.model.get_submodule(module)
    outputs = []
    for shift in ([], [(linear, lambda y: y + v.to(y))]):
        with replace_outputs([*silent, *shift]):
            outputs += _outputs(block, [probe.base], {})
    difference = (outputs[1] - outputs[0]).double()
    factor = float((difference @ probe.direction).mean() / anatomy.d_model**0.5)
    if not (difference - factor * v).abs().max() <= _TOLERANCE * abs(factor) * v.abs().max():
        raise block.error("does not add an output bias to the residual as it is")
    return factor


def _is_inside(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


def embedding_scale(lm: LM, anatomy: Anatomy) -> float:
    """Return the factor by which the first block's input is the stored token embedding.

    It is √d_model in Gemma, and 12 in Granite. Raises SourceError if anything but embeddings that
    are known writes to that input, or if a norm stands between.
    """
    embedding: nn.Embedding = lm.decoder.get_input_embeddings()  # type: ignore[operator]
    n = min(_CHECKED_TOKENS, lm.vocab_size)
    ids = torch.arange(n, device=lm.device)[None]
    with torch.inference_mode():
        stored = embedding.weight[ids[0]].double()
        inputs = [first_block_input(lm, x)[0].double() for x in (ids, ids.flip(1))]
    # Learned positions are the same in both.
    difference, stored_difference = inputs[0] - inputs[1], stored - stored.flip(0)
    norm = stored_difference.pow(2).sum()
    scale = float((difference * stored_difference).sum() / norm) if norm else 1.0
    rest = inputs[0] - scale * stored
    positions = _learned_positions(lm, anatomy)
    if positions is not None:
        rest = torch.stack([(positions - row).abs().max(-1).values.min() for row in rest])
    if not rest.abs().max() <= _EMBEDDING_TOLERANCE * inputs[0].abs().max():
        raise SourceError(
            f"architecture {anatomy.kind!r}: the first block does not read the sum of its stored "
            "embeddings (a norm or other weights stand between), so edits cannot be baked"
        )
    return scale


def _learned_positions(lm: LM, anatomy: Anatomy) -> Float[Tensor, "n d_model"] | None:
    for port in anatomy.writes[1:]:
        if port.layer == EMBEDDING:
            return lm.model.get_parameter(port.name).double()
    return None
