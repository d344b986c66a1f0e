"""Residuals of a real model at several layers: position 0 and sinks left out, kept in bfloat16."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saescope.engine.batches import divide_into_batches, lay_out
from saescope.engine.lm import load_lm
from saescope.engine.residual import capture
from saescope.engine.tokens import tokenize
from saescope.sources.prompts import Prompt
from training.saes import Residuals

_BATCH_TOKENS = 4096
# Sinks are over 12 times the median at some middle layer, ordinary positions below 4 at all.
SINK_FACTOR = 6.0


@dataclass(frozen=True)
class Collected:
    """Residuals by layer, and the share of positions left out as sinks."""

    layers: dict[int, Residuals]
    sink_share: float


@torch.inference_mode()
def collect(model: Path, layers: Sequence[int], prompts: Sequence[Prompt]) -> Collected:
    """Residuals after each layer of every position that is no sink at any of the layers."""
    lm = load_lm(model, layers, dtype="bfloat16")
    rows = [row for row in tokenize(lm, prompts) if len(row) > 1]
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    lengths = []
    for batch in divide_into_batches([len(row) for row in rows], _BATCH_TOKENS, packed=False):
        tokens = lay_out(batch, rows, lm.device)
        kept = tokens.mask.clone()
        kept[:, 0] = False
        with capture(lm, layers) as resid:
            lm.model(input_ids=tokens.ids, use_cache=False)
        for layer in layers:
            parts[layer].append(resid[layer][kept].bfloat16())
        lengths += kept.sum(1).tolist()
    return without_sinks({layer: torch.cat(parts.pop(layer)) for layer in layers}, lengths)


def without_sinks(
    resid: dict[int, Float[Tensor, "n d_model"]], lengths: Sequence[int]
) -> Collected:
    sinks = torch.stack([_sinks(values) for values in resid.values()]).any(0)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    kept = torch.bincount(owner[~sinks], minlength=len(lengths))
    starts = torch.cat([torch.zeros(1, dtype=kept.dtype), kept[kept > 0].cumsum(0)])
    layers = {layer: Residuals(values[~sinks], starts) for layer, values in resid.items()}
    return Collected(layers, float(sinks.float().mean()))


def _sinks(resid: Float[Tensor, "n d_model"]) -> Bool[Tensor, "n"]:
    norms = torch.cat([block.float().norm(dim=1) for block in resid.split(65536)])
    return norms > SINK_FACTOR * norms.median()


def save(collected: Collected, folder: Path) -> None:
    """Write `layer{n}.pt` for each layer."""
    for layer, data in collected.layers.items():
        tensors = {"resid": data.resid, "starts": data.starts}
        torch.save(tensors, folder / f"layer{layer}.pt")


def join(folders: Sequence[Path], layer: int) -> Residuals:
    """The residuals of one layer from all folders that `save` wrote."""
    parts = [torch.load(folder / f"layer{layer}.pt", weights_only=True) for folder in folders]
    resid = torch.cat([part["resid"] for part in parts])
    lengths = [part["starts"].diff() for part in parts]
    return Residuals(resid, torch.cat([torch.zeros(1, dtype=torch.int64), *lengths]).cumsum(0))
