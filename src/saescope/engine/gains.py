"""The gain γ of an RMSNorm, measured by running the norm, since γ may be stored as γ − 1."""

import copy
from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saescope.engine.anatomy import Anatomy
from saescope.engine.config import read_config
from saescope.engine.shards import Shards
from saescope.engine.stock import decoder_of, stock_model
from saescope.errors import SourceError

_LARGE = 1e4  # so large that a norm's epsilon does not matter


def norm_gains(
    shards: Shards, anatomy: Anatomy, names: Collection[str]
) -> dict[str, Float[Tensor, "d_model"]]:
    """Return γ of these norms in float64; raise SourceError unless all are h ↦ γ ⊙ h / rms(h)."""
    if not names:
        return {}
    decoder = decoder_of(stock_model(read_config(shards.files), torch.float32))
    return {
        name: _gain(shards, anatomy, name, decoder.get_submodule(name)) for name in sorted(names)
    }


def _gain(
    shards: Shards, anatomy: Anatomy, name: str, on_meta: nn.Module
) -> Float[Tensor, "d_model"]:
    norm = copy.deepcopy(on_meta).to_empty(device="cpu")
    state: Mapping[str, Tensor] = {
        key: shards.tensor(anatomy.names[f"{name}.{key}"][0]) for key in norm.state_dict()
    }
    norm.load_state_dict({key: tensor.float() for key, tensor in state.items()})
    random = _LARGE * torch.randn(4, anatomy.d_model, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        gain: Tensor = norm(torch.full((anatomy.d_model,), _LARGE)).double()
        expected = gain * random / random.double().pow(2).mean(-1, keepdim=True).sqrt()
        output = norm(random).double()
    if (output - expected).abs().max() > 1e-4 * gain.abs().max():
        raise SourceError(
            f"architecture {anatomy.kind!r}: its norms are not h ↦ γ·h/rms(h) ({name}), "
            "so weights that read after them cannot take over a projection: "
            "use method=every-write"
        )
    return gain
