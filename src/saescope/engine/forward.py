"""Token ids to residuals: batch by batch, or block by block if the model is streamed."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.engine.batches import BatchPlan, lay_out
from saescope.engine.lm import LM
from saescope.engine.matmul_kernels import NATIVE, KernelMode, Kernels
from saescope.engine.prefix import SharedPrefix
from saescope.engine.residual import capture
from saescope.engine.stream import stream_blocks

Unit = tuple[int, int]  # a batch and a layer: what is computed, stored and resumed as one


@dataclass(frozen=True)
class BatchResiduals:
    """One batch's residuals after one layer: its shared prefix first, then each prompt's tokens."""

    batch: int
    layer: int
    resid: Float[Tensor, "n d_model"]


def compute_residuals(
    lm: LM,
    layers: Sequence[int],
    plan: BatchPlan,
    finished: Container[Unit] = (),
    spill: Path | None = None,
    kernels: Kernels = NATIVE,
) -> Iterator[BatchResiduals]:
    """Residuals of every batch and layer that is not finished.

    A streamed model goes layer by layer, and keeps residuals between blocks in files of the folder
    `spill`, or in memory. `kernels` multiply in linear layers.
    """
    missing = _missing_layers(layers, plan, finished)
    mode = KernelMode(kernels)
    if not missing:
        return
    if lm.streamed is None:
        yield from _batch_by_batch(lm, plan, missing, mode)
    else:
        yield from _block_by_block(lm, plan, missing, mode, spill)


def _missing_layers(
    layers: Sequence[int], plan: BatchPlan, finished: Container[Unit]
) -> dict[int, list[int]]:
    """For each batch the layers that are still to be computed; complete batches are left out."""
    missing = {}
    for batch in range(len(plan.batches)):
        unfinished = [layer for layer in layers if (batch, layer) not in finished]
        if unfinished:
            missing[batch] = unfinished
    return missing


def _batch_by_batch(
    lm: LM, plan: BatchPlan, missing: Mapping[int, Sequence[int]], mode: KernelMode
) -> Iterator[BatchResiduals]:
    prefix: SharedPrefix | None = None
    for number, layers in missing.items():
        batch = plan.batches[number]
        tokens = lay_out(batch.rows, plan.suffix_ids(number), lm.device)
        with torch.inference_mode(), mode:
            if batch.prefix_length == 0:
                prefix = None
            elif prefix is None or not prefix.serves(plan.prefix_ids(number), layers):
                prefix = SharedPrefix(lm, plan.prefix_ids(number), layers)
            with capture(lm, layers) as captured:
                if prefix is None:
                    lm.model(input_ids=tokens.ids, position_ids=tokens.positions, use_cache=False)
                else:
                    prefix.run_suffixes(tokens.ids)
        for layer in layers:
            resid = captured.pop(layer)[tokens.mask]
            if prefix is not None:
                resid = torch.cat([prefix.resid(layer), resid])
            yield BatchResiduals(number, layer, resid)


def _block_by_block(
    lm: LM,
    plan: BatchPlan,
    missing: Mapping[int, Sequence[int]],
    mode: KernelMode,
    spill: Path | None,
) -> Iterator[BatchResiduals]:
    numbers = list(missing)
    layers = sorted({layer for unfinished in missing.values() for layer in unfinished})
    batches = [lay_out(plan.batches[n].rows, plan.token_ids, lm.device) for n in numbers]
    for output in stream_blocks(lm, layers, batches, spill, mode):
        number = numbers[output.batch]
        if output.layer in missing[number]:
            resid = output.resid[batches[output.batch].mask]
            yield BatchResiduals(number, output.layer, resid)
