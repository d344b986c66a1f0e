"""Shows by numbers that the known writers and readers are all there are: one block of each kind, in float32.

With every writer projected against a random direction, no block may add anything along it. With every reader past a
projected norm too, no block may tell a residual from its mirror image along the direction, which has the same length.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from saescope.control.baking.checkpoint_writer import RoundingSums, updated
from saescope.control.baking.methods import WeightUpdate, read, written
from saescope.control.baking.residual_map import projection
from saescope.engine.anatomy import Anatomy, Port
from saescope.engine.lm import LM
from saescope.engine.stream import run_block
from saescope.errors import SourceError

_TOLERANCE = 1e-3  # of the largest value a block adds: far above float32's noise, far below what a missed matrix does
_POSITIONS = 8


def check_anatomy(lm: LM, anatomy: Anatomy, gains: Mapping[str, Tensor], *, reads: bool) -> None:
    """Raises SourceError where something writes to the residual (or, if `reads`, reads it) that is not known.

    `lm` is streamed and reaches up to the last kind of block.
    """
    random = torch.Generator().manual_seed(0)
    r = torch.randn(anatomy.d_model, generator=random, dtype=torch.float64)
    m = projection([r], [1.0])
    x = m(torch.randn(1, _POSITIONS, anatomy.d_model, generator=random, dtype=torch.float64))
    along = (
        (r / r.norm())
        * torch.randn(1, _POSITIONS, 1, generator=random, dtype=torch.float64)
        * r.norm()
        / 4
    )
    for layer in anatomy.kinds:
        changes = {p: written(p, m, gains) for p in anatomy.writes if p.layer == layer}
        if reads:
            changes |= {p: read(p, m, gains) for p in anatomy.reads if p.layer == layer}
        seen, mirrored = _run(lm, layer, changes, [(x + along).float(), (x - along).float()])
        most = seen.abs().max()
        # A component is spread over all coordinates: compared with what one coordinate holds.
        stray = (seen.double() @ (r / r.norm())).abs().max()
        if not most > 0 or not stray <= _TOLERANCE * most:
            raise SourceError(
                f"architecture {anatomy.kind!r}: block {layer} writes to the residual by weights that are not known, "
                "so edits cannot be put into them"
            )
        if reads and not (seen - mirrored).abs().max() <= _TOLERANCE * most:
            raise SourceError(
                f"architecture {anatomy.kind!r}: block {layer} reads the residual by weights or norms that are not "
                "known, so edits cannot be put into what it reads: use --method every-write"
            )


def _run(
    lm: LM, layer: int, changes: Mapping[Port, WeightUpdate], given: Sequence[Tensor]
) -> list[Tensor]:
    """What the changed block adds to each residual."""
    path = next(name for name, module in lm.model.named_modules() if module is lm.blocks)

    def alter(block: nn.Module) -> None:
        state = {name: tensor.float() for name, tensor in block.state_dict().items()}
        for port, change in changes.items():
            name = port.name.removeprefix(f"{path}.{layer}.")
            pieces = [piece.flatten() for piece in updated(state[name], change, RoundingSums())]
            state[name] = torch.cat(pieces).reshape(state[name].shape)
        block.load_state_dict(state, assign=True)

    outputs = run_block(lm, layer, [resid.to(lm.device) for resid in given], alter)
    return [(output.cpu() - resid).float() for output, resid in zip(outputs, given, strict=True)]
