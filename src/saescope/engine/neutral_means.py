"""The mean residual over neutral text, layer by layer.

Which positions count: those of each text that steering edits by default. Left out are position 0,
special tokens such as a BOS, and sinks. Texts with no position left do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saescope.engine.batches import BATCH_TOKENS, plan_batches
from saescope.engine.forward import compute_residuals
from saescope.engine.lm import LM
from saescope.engine.magnitudes import finite_magnitudes
from saescope.engine.residual import is_edited
from saescope.engine.text_ids import special_ids
from saescope.engine.tokens import prompt_ids
from saescope.errors import PromptError, SourceError
from saescope.sources.neutral_mean import NeutralMean
from saescope.sources.prompt_sets import bundled_prompts
from saescope.sources.prompts import Prompt
from saescope.store.masking import Magnitudes
from saescope.store.run_positions import scored_in_prompts


def neutral_means(
    lm: LM,
    layers: Sequence[int],
    texts: Sequence[Prompt] | None = None,
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> dict[int, NeutralMean]:
    """Return the mean residual after each of these layers over neutral text, in one pass.

    `texts`: the neutral text; None takes the bundled sentences. Those that do not fit the model's
    context are left out.
    `steered` never runs the model by itself, so edits that act about the mean take it from here:
    `Edit(..., "project", about=means[layer])`. Raises PromptError if the texts have no position
    that counts, and SourceError inside a `steered` context or if a residual is not finite.

    >>> import saescope as ss
    >>> lm, sae = ss.load_lm("saescope-tiny", [2]), ss.load_sae("saescope-tiny-sae", 2)
    >>> mean = ss.neutral_means(lm, [2])[2]
    >>> mean.source, mean.positions > 1000
    ('60 texts of neutral', True)
    >>> edit = ss.Edit("2/5", "project", about=mean)
    >>> with ss.steered(lm, [sae], [edit]) as receipt:
    ...     features = ss.scan(lm, [sae], ss.texts(["The red dog sleeps."])[0].prompts)
    >>> receipt.applied
    True
    """
    if is_edited(lm):
        raise SourceError("the neutral mean is of the unedited model: measure it before steered()")
    if texts is None:
        texts = bundled_prompts("neutral")[0].prompts
    texts = [text for text in texts if _fits(lm, text)]
    if not texts:
        raise PromptError(
            f"no neutral text fits the {lm.max_length:,} tokens of {lm.spec.repo}: "
            "give shorter texts to measure the mean residual on"
        )
    sums = _sums(lm, sorted(set(layers)), texts, batch_tokens)
    return {layer: total.mean(layer, _describe(texts)) for layer, total in sums.items()}


def _fits(lm: LM, text: Prompt) -> bool:
    try:
        return bool(prompt_ids(lm, text))
    except PromptError:
        return False


def _describe(texts: Sequence[Prompt]) -> str:
    sets = dict.fromkeys(text.set for text in texts)
    noun = "text" if len(texts) == 1 else "texts"
    return f"{len(texts)} {noun} of {', '.join(sets)}"


@final
@dataclass
class _Sums:
    """Sums over the positions that count, in float64."""

    total: Float[Tensor, "d_model"]
    squares: float = 0.0
    positions: int = 0

    def add(self, resid: Float[Tensor, "n d_model"]) -> None:
        values = resid.double().cpu()
        self.total += values.sum(0)
        self.squares += float(values.pow(2).sum())
        self.positions += len(values)

    def mean(self, layer: int, source: str) -> NeutralMean:
        if not self.positions:
            raise PromptError(
                "the neutral text has only first positions, special tokens and sinks: "
                "give longer texts to measure the mean residual on"
            )
        mean = self.total / self.positions
        variance = self.squares / self.positions - float(mean.pow(2).sum())
        if not variance > 0:
            raise PromptError(
                f"the neutral text has {self.positions} position(s) that count, with the same "
                "residual: give more text to measure the mean residual on"
            )
        return NeutralMean(layer, mean.numpy(), variance**0.5, self.positions, source)


def _sums(
    lm: LM, layers: Sequence[int], texts: Sequence[Prompt], batch_tokens: int
) -> dict[int, _Sums]:
    plan = plan_batches(lm, texts, batch_tokens)
    special = list(special_ids(lm.tokenizer))
    sums = {layer: _Sums(torch.zeros(lm.spec.d_model, dtype=torch.float64)) for layer in layers}
    for residuals in compute_residuals(lm, layers, plan):
        resid = residuals.resid.float()
        indices = plan.residual_indices(residuals.batch)
        if indices is not None:
            resid = resid[indices.to(resid.device)]
        norms, peaks = finite_magnitudes(resid, residuals.layer)
        magnitudes = Magnitudes(norms.cpu().numpy(), peaks.cpu().numpy())
        ids = [plan.token_ids[prompt] for prompt in plan.prompt_order(residuals.batch)]
        scored = scored_in_prompts(residuals.layer, magnitudes, [len(row) for row in ids])
        counts = scored & np.isin(np.concatenate(ids), special, invert=True)
        sums[residuals.layer].add(resid[torch.from_numpy(counts).to(resid.device)])
    return sums
