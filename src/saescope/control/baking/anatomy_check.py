"""Verify numerically that no residual writer or reader was missed.

One block of each kind runs in float32, with a random direction projected out. If all writers are
projected, the block adds nothing along the direction. If all readers are projected too, its outputs
must be equal for h and for h reflected along the direction (reflection keeps the norm).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saescope.control.baking.methods import read_update, write_update
from saescope.control.baking.residual_map import ResidualMap, projection
from saescope.control.baking.weight_update import RoundingSums, WeightUpdate, apply_update
from saescope.engine.anatomy import Anatomy, Port
from saescope.engine.lm import LM
from saescope.engine.stream import run_block
from saescope.errors import SourceError

# Relative to the largest value that a block adds: far above float32 noise, far below the effect of
# a missed matrix.
_TOLERANCE = 1e-3
_POSITIONS = 8
# Size of the probe's component along the direction, in units of sqrt(d_model).
_COMPONENT_SCALE = 0.25


def check_anatomy(lm: LM, anatomy: Anatomy, gains: Mapping[str, Tensor], *, reads: bool) -> None:
    """Raise SourceError if an unknown parameter writes the residual or, if `reads`, reads it.

    `lm` is streamed and reaches up to the last kind of block.
    """
    probe = _random_probe(anatomy.d_model)
    for layer in anatomy.kinds:
        updates = {p: write_update(p, probe.map, gains) for p in anatomy.writes if p.layer == layer}
        if reads:
            updates |= {
                p: read_update(p, probe.map, gains) for p in anatomy.reads if p.layer == layer
            }
        added, added_to_reflected = _added_by_block(
            lm, layer, updates, [probe.resid, probe.reflected]
        )
        largest = added.abs().max()
        # The component is spread over all coordinates: compare it with the largest single one.
        along = (added.double() @ probe.direction).abs().max()
        if not largest > 0 or not along <= _TOLERANCE * largest:
            raise SourceError(
                f"architecture {anatomy.kind!r}: block {layer} writes to the residual by weights "
                "that are not known, so edits cannot be baked"
            )
        difference = (added - added_to_reflected).abs().max()
        if reads and not difference <= _TOLERANCE * largest:
            raise SourceError(
                f"architecture {anatomy.kind!r}: block {layer} reads the residual by weights or "
                "norms that are not known, so edits cannot be baked into its readers: use "
                "method 'every-write'"
            )


@dataclass(frozen=True, eq=False)
class _Probe:
    """A random unit direction, its projection, and residuals that differ only along it."""

    direction: Float[Tensor, "d_model"]
    map: ResidualMap
    resid: Float[Tensor, "1 pos d_model"]
    reflected: Float[Tensor, "1 pos d_model"]


def _random_probe(d_model: int) -> _Probe:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    r = draw(d_model)
    unit = r / r.norm()
    without_r = projection([r], [1.0])
    base = without_r(draw(1, _POSITIONS, d_model))
    component = unit * draw(1, _POSITIONS, 1) * r.norm() * _COMPONENT_SCALE
    return _Probe(unit, without_r, (base + component).float(), (base - component).float())


def _added_by_block(
    lm: LM, layer: int, updates: Mapping[Port, WeightUpdate], resids: Sequence[Tensor]
) -> list[Tensor]:
    """Return what the updated block adds to each residual (1, pos, d_model)."""
    path = next(name for name, module in lm.model.named_modules() if module is lm.blocks)

    def update_weights(block: nn.Module) -> None:
        state = {name: tensor.float() for name, tensor in block.state_dict().items()}
        for port, update in updates.items():
            name = port.name.removeprefix(f"{path}.{layer}.")
            chunks = apply_update(state[name], update, RoundingSums())
            flat = torch.cat([chunk.flatten() for chunk in chunks])
            state[name] = flat.reshape(state[name].shape)
        block.load_state_dict(state, assign=True)

    outputs = run_block(lm, layer, [resid.to(lm.device) for resid in resids], update_weights)
    return [(output.cpu() - resid).float() for output, resid in zip(outputs, resids, strict=True)]
