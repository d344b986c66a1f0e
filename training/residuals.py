"""Residuals of a trained model on fresh texts, for SAE training and for judging SAEs."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from saescope.engine.batches import divide_into_batches, lay_out
from saescope.engine.lm import LM, load_lm
from saescope.engine.residual import capture
from training.corpus import documents
from training.saes import Residuals


def collect(model: Path, layer: int, n_documents: int, seed: int) -> Residuals:
    """Residuals after `layer` of every token but the first of `n_documents` documents."""
    lm = load_lm(model, [layer], dtype="float32")
    texts = [text for _, text in islice(documents(seed), n_documents)]
    return collect_rows(lm, [layer], [lm.tokenizer(text)["input_ids"] for text in texts])[layer]


@torch.inference_mode()
def collect_rows(lm: LM, layers: Sequence[int], rows: Sequence[list[int]]) -> dict[int, Residuals]:
    """Residuals after each layer of every token but the first of the rows, the longest rows first.

    Position 0 carries extreme norms and is left out, as it is when the SAE is used.
    """
    rows = [row for row in rows if len(row) > 1]
    parts: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    for batch in divide_into_batches([len(row) for row in rows], 8192, packed=False):
        tokens = lay_out(batch, rows, lm.device)
        with capture(lm, layers) as resid:
            lm.model(input_ids=tokens.ids, use_cache=False)
        for layer in layers:
            parts[layer] += [
                row[mask][1:] for row, mask in zip(resid[layer], tokens.mask, strict=True)
            ]
    return {layer: _joined(parts.pop(layer)) for layer in layers}


def _joined(parts: list[torch.Tensor]) -> Residuals:
    lengths = torch.tensor([0, *map(len, parts)])
    return Residuals(torch.cat(parts).clone(), lengths.cumsum(0))
