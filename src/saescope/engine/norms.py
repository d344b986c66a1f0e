"""Tokens and residual norms of prompts, measured without an SAE."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from saescope.engine.batches import BATCH_TOKENS, plan_batches
from saescope.engine.forward import compute_residuals
from saescope.engine.lm import LM
from saescope.engine.magnitudes import finite_magnitudes
from saescope.engine.text_ids import special_ids
from saescope.engine.tokens import TokenText
from saescope.sources.prompts import PromptSet
from saescope.store.masking import Magnitudes
from saescope.store.token_norms import MeasuredNorms


def measure_norms(
    lm: LM,
    layers: Sequence[int],
    sets: Sequence[PromptSet],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> MeasuredNorms:
    """Return the tokens of all prompts and their residual norms after these layers.

    `progress` is called with tokens × layers done and their total. Raises SourceError if
    a residual is not finite.

    >>> import saescope as ss
    >>> from saescope.engine.norms import measure_norms
    >>> lm = ss.load_lm("saescope-tiny", [1])
    >>> measure_norms(lm, [1], ss.texts(["A short text."])).norms(1).shape
    (6,)
    """
    prompts = tuple(prompt for group in sets for prompt in group.prompts)
    plan = plan_batches(lm, prompts, batch_tokens)
    n_tokens, n_done = sum(plan.lengths), 0
    # Norms and peaks of every token.
    measured = {layer: np.empty((2, n_tokens), np.float32) for layer in layers}
    for residuals in compute_residuals(lm, sorted(measured), plan):
        computed = finite_magnitudes(residuals.resid.float(), residuals.layer)
        by_row = torch.stack(computed).cpu().numpy()
        indices = plan.residual_indices(residuals.batch)
        tokens = plan.token_indices(residuals.batch)
        by_token = by_row if indices is None else by_row[:, indices.numpy()]
        measured[residuals.layer][:, tokens] = by_token
        n_done += len(tokens)
        if progress:
            progress(n_done, n_tokens * len(measured))
    text, special = TokenText(lm.tokenizer), list(special_ids(lm.tokenizer))
    ids = [token for row in plan.token_ids for token in row]
    return MeasuredNorms(
        prompts=prompts,
        lengths=plan.lengths,
        token_text=[text(token) for token in ids],
        is_text=np.isin(ids, special, invert=True),
        magnitudes_of_layer={n: Magnitudes(*values) for n, values in measured.items()},
    )
