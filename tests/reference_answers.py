"""What the makers of the reference SAEs share: sizes, inputs, random weights, SAELens' loaders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.saes.sae import SAE
from torch import Tensor

D_MODEL, D_SAE, K = 32, 96, 8


class Answer(NamedTuple):
    """What a maker's code computes from some residuals."""

    resid: Tensor
    acts: Tensor
    decoded: Tensor
    layer: int


Answers = dict[str, Answer]


def residuals() -> Tensor:
    return torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1)) * 2 + 0.3


def drawn(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomise(module: torch.nn.Module) -> None:
    """Every parameter random, biases too; decoder rows of different lengths."""
    for seed, (name, parameter) in enumerate(sorted(module.named_parameters())):
        scale = 0.3 if parameter.ndim == 1 else parameter.shape[name == "W_dec"] ** -0.5
        parameter.data = drawn(*parameter.shape, seed=seed, scale=scale).to(parameter.dtype)
        if "threshold" in name:
            parameter.data = parameter.data.abs() + 0.4
    if isinstance(getattr(module, "W_dec", None), torch.nn.Parameter):
        lengths = torch.linspace(0.5, 2, len(module.W_dec))[:, None].to(module.W_dec.dtype)
        module.W_dec.data = module.W_dec.data * lengths


@torch.no_grad()
def answer(sae: Any, layer: int, scale: float = 1.0) -> Answer:
    """The maker's answer in saescope's units, of which one of the maker's is `scale`."""
    acts = sae.encode(residuals())
    return Answer(residuals(), acts * scale, sae.decode(acts), layer)


def by_saelens(loader: Callable[..., Any], repo: str, folder: str, out: Path) -> SAE[Any]:
    """The SAE that SAELens' loader for `repo` builds from the files in `out`, of any size."""

    def converted(**options: Any) -> Any:
        config, state, sparsity = loader(**options)
        config["d_in"], config["d_sae"] = state["W_enc"].shape
        state = {name: tensor.float() for name, tensor in state.items()}
        return config | {"dtype": "float32"}, state, sparsity

    def local_path(repo_id: str, filename: str, subfolder: str = "", **_: Any) -> str:
        return str(out / subfolder / filename)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        weights = loaders.load_safetensors_weights(out / filename)
        return {name: list(tensor.shape) for name, tensor in weights.items()}

    loaders.hf_hub_download = local_path  # type: ignore[assignment]
    loaders.get_safetensors_tensor_shapes = shapes
    return SAE.from_pretrained(repo, folder, converter=converted)


def tensors(seed: int) -> dict[str, Tensor]:
    """Random weights as most makers store them: features are columns of W_enc, rows of W_dec."""
    lengths = torch.linspace(0.5, 2, D_SAE)[:, None]
    return {
        "W_enc": drawn(D_MODEL, D_SAE, seed=seed, scale=D_MODEL**-0.5),
        "b_enc": drawn(D_SAE, seed=seed + 1, scale=0.3),
        "W_dec": drawn(D_SAE, D_MODEL, seed=seed + 2, scale=D_MODEL**-0.5) * lengths,
        "b_dec": drawn(D_MODEL, seed=seed + 3, scale=0.3),
        "threshold": drawn(D_SAE, seed=seed + 4, scale=0.3).abs() + 0.4,
    }
