"""Which tokens a feature promotes, and whether amplifying it produces them (arXiv 2505.20063).

A feature that fires on a behaviour's input need not change the output. The output score tells the
two apart before anything is generated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saescope.control.edits import Edit
from saescope.control.steer import steered
from saescope.engine.batches import divide_into_batches, lay_out
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.engine.tokens import TokenText
from saescope.engine.whole import logit_lens
from saescope.errors import EditError
from saescope.sources.catalog import Feature

_N_PROMOTED = 10
_BATCH_TOKENS = 1024


@dataclass(frozen=True)
class OutputScore:
    """The tokens that a feature promotes, and how likely they are when it is amplified.

    Of the promoted tokens, the most likely one after each prompt counts; figures are means over
    prompts.
    """

    tokens: list[str]
    "The tokens with the largest logits in the logit lens of the feature's decoder column."

    rank: float
    "Rank among all tokens with the feature amplified; 0 is the most likely token."

    probability: float
    "Probability with the feature amplified."

    before: float
    "Probability without."

    score: float
    "Mean of (1 - rank / vocabulary size) · probability."


def output_scores(
    lm: LM, saes: Sequence[Sae], amounts: Mapping[Feature, float], rows: Sequence[Sequence[int]]
) -> dict[Feature, OutputScore]:
    """The output score of every feature in `amounts`, over prompts given as rows of token ids.

    Each feature is amplified by adding its amount (in units of its activation) times its decoder
    column. Raises EditError if no SAE has the feature, or the SAE is loaded without its decoder.

    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", layers=[1])
    >>> sae = ss.load_sae("saescope-tiny-sae", 1, decoder=True)
    >>> rows = [lm.tokenizer("The house is")["input_ids"]]
    >>> scores = ss.output_scores(lm, [sae], {ss.Feature(1, 0): 10.0}, rows)
    >>> len(scores[ss.Feature(1, 0)].tokens)
    10
    """
    token_text = TokenText(lm.tokenizer)
    unedited = _next_token_probs(lm, rows)
    scores = {}
    for feature, amount in amounts.items():
        promoted = _promoted_tokens(lm, saes, feature)
        with steered(lm, saes, [Edit(feature, "add", amount)]):
            amplified = _next_token_probs(lm, rows)
        tokens = [token_text(token) for token in promoted.tolist()]
        scores[feature] = _score(tokens, promoted, unedited, amplified)
    return scores


def _promoted_tokens(lm: LM, saes: Sequence[Sae], feature: Feature) -> Int[Tensor, "n_promoted"]:
    """Ids of the tokens with the largest logits in the feature's logit lens."""
    sae = next((sae for sae in saes if sae.spec.layer == feature.layer), None)
    if sae is None or sae.W_dec is None:
        raise EditError(
            f"output score of {feature}: its layer's SAE is not loaded with its decoder"
        )
    direction = sae.W_dec[:, feature.id].to(lm.device)
    logits = logit_lens(lm.whole, direction[None])[0]
    return logits.topk(_N_PROMOTED).indices


def _next_token_probs(lm: LM, rows: Sequence[Sequence[int]]) -> Float[Tensor, "n_rows vocab"]:
    """Probabilities of the token after each row."""
    probs: dict[int, Tensor] = {}
    for batch in divide_into_batches([len(row) for row in rows], _BATCH_TOKENS, packed=False):
        tokens = lay_out(batch, rows, lm.device)
        mask = tokens.mask.long()
        with torch.inference_mode():
            logits = lm.whole(input_ids=tokens.ids, attention_mask=mask, use_cache=False).logits
        for line, [number] in enumerate(batch):
            last = len(rows[number]) - 1
            probs[number] = torch.softmax(logits[line, last].float(), dim=-1)
    return torch.stack([probs[number] for number in range(len(rows))])


def _score(
    tokens: list[str],
    promoted: Int[Tensor, "n_promoted"],
    unedited: Float[Tensor, "n_rows vocab"],
    amplified: Float[Tensor, "n_rows vocab"],
) -> OutputScore:
    before = unedited[:, promoted].amax(dim=1)
    after = amplified[:, promoted].amax(dim=1)
    ranks = (amplified > after[:, None]).sum(dim=1).double()
    scores = (1 - ranks / amplified.shape[1]) * after.double()
    return OutputScore(
        tokens=tokens,
        rank=float(ranks.mean()),
        probability=float(after.mean()),
        before=float(before.mean()),
        score=float(scores.mean()),
    )
