"""Residuals of the trained model on fresh documents, for SAE training and for judging SAEs."""

from itertools import islice
from pathlib import Path

import torch

from saescope.engine.lm import load_lm
from saescope.engine.residual import capture
from saescope.engine.tokens import lay_out, plan_batches
from training.corpus import documents
from training.saes import Residuals


@torch.inference_mode()
def collect(model: Path, layer: int, n_documents: int, seed: int) -> Residuals:
    """Residuals after `layer` of every token but the first of `n_documents` documents.

    Position 0 carries extreme norms and is left out, as it is when the SAE is used.
    """
    lm = load_lm(model, [layer], dtype="float32")
    texts = [text for _, text in islice(documents(seed), n_documents)]
    rows = [row for row in (lm.tokenizer(text)["input_ids"] for text in texts) if len(row) > 1]
    parts: list[torch.Tensor] = []
    for batch in plan_batches([len(row) for row in rows], 8192, packed=False):
        tokens = lay_out(batch, rows, lm.device)
        with capture(lm, [layer]) as resid:
            lm.model(input_ids=tokens.ids, use_cache=False)
        parts += [row[mask][1:] for row, mask in zip(resid[layer], tokens.mask, strict=True)]
    lengths = torch.tensor([0, *map(len, parts)])
    return Residuals(torch.cat(parts).clone(), lengths.cumsum(0))
