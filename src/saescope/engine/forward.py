"""Compute residuals from token ids: batch by batch, or block by block for streamed models."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.engine.batches import BatchPlan, lay_out
from saescope.engine.lm import LM
from saescope.engine.matmul_kernels import NATIVE, KernelMode, Kernels
from saescope.engine.pages import release_heap
from saescope.engine.prefix import SharedPrefix
from saescope.engine.residual import capture
from saescope.engine.stream import stream_blocks

Unit = tuple[int, int]  # (batch index, layer): the unit of computing, storing and resuming


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
    """Yield the residuals of every batch and layer that is not finished.

    A streamed model runs layer by layer. `spill`: folder for intermediate residuals (None: kept
    in memory). `kernels`: matmul kernels for linear layers.
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
    """Return the layers still to compute per batch, without the batches that are complete."""
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
    for batch_index, layers in missing.items():
        batch = plan.batches[batch_index]
        tokens = lay_out(batch.rows, plan.suffix_ids(batch_index), lm.device)
        with torch.inference_mode(), mode:
            if batch.prefix_length == 0:
                prefix = None
            elif prefix is None or not prefix.matches(plan.prefix_ids(batch_index), layers):
                prefix = SharedPrefix(lm, plan.prefix_ids(batch_index), layers)
            with capture(lm, layers) as captured:
                if prefix is None:
                    lm.model(input_ids=tokens.ids, position_ids=tokens.positions, use_cache=False)
                else:
                    prefix.run_suffixes(tokens.ids)
        for layer in layers:
            resid = captured.pop(layer)[tokens.mask]
            if prefix is not None:
                resid = torch.cat([prefix.resid(layer), resid])
            yield BatchResiduals(batch_index, layer, resid)
        release_heap()


def _block_by_block(
    lm: LM,
    plan: BatchPlan,
    missing: Mapping[int, Sequence[int]],
    mode: KernelMode,
    spill: Path | None,
) -> Iterator[BatchResiduals]:
    batch_indices = list(missing)
    layers = sorted({layer for unfinished in missing.values() for layer in unfinished})
    batches = []
    for batch_index in batch_indices:
        batches.append(lay_out(plan.batches[batch_index].rows, plan.token_ids, lm.device))
    for output in stream_blocks(lm, layers, batches, spill, mode):
        batch_index = batch_indices[output.batch]
        if output.layer in missing[batch_index]:
            resid = output.resid[batches[output.batch].mask]
            yield BatchResiduals(batch_index, output.layer, resid)
