"""The vectors that edits write along, layer by layer."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from saescope.control.edits import Edit
from saescope.control.formulae import bind_edits
from saescope.engine.sae import Sae
from saescope.errors import EditError


def vectors(
    edits: Sequence[Edit], saes: Sequence[Sae]
) -> dict[int, tuple[list[Edit], Float[Tensor, "n d_model"]]]:
    """For each layer its edits and, a row each in float32, what they write along; ascending.

    Raises EditError for an edit whose SAE is not among these, and where there is none to export.
    """
    if not edits:
        raise EditError("there are no edits to export")
    sae_of = {sae.spec.layer: sae for sae in saes}
    found: dict[int, list[Edit]] = {}
    for edit in edits:
        found.setdefault(edit.layer, []).append(edit)
    return {
        layer: (of, bind_edits(of, sae_of.get(layer)).d.cpu())
        for layer, of in sorted(found.items())
    }
