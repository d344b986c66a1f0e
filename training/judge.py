"""Quality of the pair on fresh documents: loss beside n-gram models, and SAE reconstruction."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from saescope.engine.load import load_sae
from training.language_model import held_out_loss, ngram_losses
from training.residuals import collect
from training.tokens import rows

_WIDTH, _N_TRAIN, _N_TEST = 128, 8000, 512
TRAIN_SEED, TEST_SEED = 500_000, 900_000


@dataclass(frozen=True)
class SaeQuality:
    """Unexplained variance (FVU), mean firing features per token, share of dead features."""

    layer: int
    fvu: float
    l0: float
    dead: float


def judge_model(folder: Path) -> dict[str, float]:
    """Cross-entropy in nats per token: this model, a bigram and a unigram model."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    ).eval()
    test = np.stack(list(islice(rows(tokenizer, _WIDTH, TEST_SEED), _N_TEST)))
    train = np.stack(list(islice(rows(tokenizer, _WIDTH, TRAIN_SEED), _N_TRAIN)))
    unigram, bigram = ngram_losses(train, test, len(tokenizer))
    return {"model": held_out_loss(model, test), "bigram": bigram, "unigram": unigram}


@torch.inference_mode()
def judge_sae(model: Path, saes: Path, layer: int, n_documents: int = 2000) -> SaeQuality:
    """FVU, L0 and dead share on documents outside the training text."""
    sae = load_sae(saes, layer)
    resid = collect(model, layer, n_documents, TEST_SEED + 1).resid
    sparse = sae.encode(resid)
    error = (resid - sae.decode(sparse)).pow(2).sum()
    fires = sparse.acts > 0
    alive = torch.bincount(sparse.ids[fires], minlength=sae.spec.d_sae) > 0
    return SaeQuality(
        layer=layer,
        fvu=float(error / (resid - resid.mean(0)).pow(2).sum()),
        l0=float(fires.sum(1).float().mean()),
        dead=float(1 - alive.float().mean()),
    )
