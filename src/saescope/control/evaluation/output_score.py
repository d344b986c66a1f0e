"""How far a feature speaks of the output: which tokens its decoder direction means, and whether amplifying says them.

After arXiv 2505.20063: a feature that fires on a behaviour's input need not move the output, and this tells the two
apart before anything is generated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from saescope.control.edits import Edit
from saescope.control.steer import steered
from saescope.engine.batches import divide_into_batches, lay_out
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.engine.tokens import TokenText
from saescope.engine.whole import logit_lens
from saescope.errors import EditError
from saescope.sources.catalog import Feature

_OWN = 10
_TOKENS = 1024


@dataclass(frozen=True)
class OutputScore:
    """A feature's own tokens (the strongest of its direction's logit lens), and what amplifying it makes of them.

    Of the likeliest of them after each prompt: `rank` among all tokens (0 is first) and `probability`, means over
    prompts; `before` the same probability without amplifying. `score` is the mean of (1 - rank / |V|) · probability.
    """

    tokens: list[str]
    rank: float
    probability: float
    before: float
    score: float


def output_scores(
    lm: LM, saes: Sequence[Sae], amounts: Mapping[Feature, float], rows: Sequence[Sequence[int]]
) -> dict[Feature, OutputScore]:
    """Every feature's score over the prompts `rows`, each amplified by its amount (its activation, times its column).

    Raises EditError for a feature of no SAE here, or of one without its decoder.
    """
    text = TokenText(lm.tokenizer)
    base = _last(lm, rows)
    found = {}
    for feature, amount in amounts.items():
        own = _own_tokens(lm, saes, feature)
        with steered(lm, saes, [Edit(feature, "add", amount)]):
            amplified = _last(lm, rows)
        found[feature] = _score(own, base, amplified, [text(token) for token in own.tolist()])
    return found


def _own_tokens(lm: LM, saes: Sequence[Sae], feature: Feature) -> torch.Tensor:
    sae = next((one for one in saes if one.spec.layer == feature.layer), None)
    if sae is None or sae.W_dec is None:
        raise EditError(
            f"output score of {feature}: its layer's SAE is not loaded with its decoder"
        )
    direction = sae.W_dec[:, feature.id].to(lm.device)
    return logit_lens(lm.whole, direction[None])[0].topk(_OWN).indices


def _last(lm: LM, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Probabilities of the token after each row (n, vocab)."""
    found: dict[int, torch.Tensor] = {}
    for batch in divide_into_batches([len(row) for row in rows], _TOKENS, packed=False):
        tokens = lay_out(batch, rows, lm.device)
        with torch.inference_mode():
            logits = lm.whole(
                input_ids=tokens.ids, attention_mask=tokens.mask.long(), use_cache=False
            ).logits
        for line, [number] in enumerate(batch):
            found[number] = torch.softmax(logits[line, len(rows[number]) - 1].float(), dim=-1)
    return torch.stack([found[number] for number in range(len(rows))])


def _score(
    own: torch.Tensor, base: torch.Tensor, amplified: torch.Tensor, tokens: list[str]
) -> OutputScore:
    """`own` token ids; probabilities without and with amplifying (n, vocab)."""
    best = amplified[:, own].max(dim=1).values
    ranks = (amplified > best[:, None]).sum(dim=1).double()
    score = (1 - ranks / amplified.shape[1]) * best.double()
    before = base[:, own].max(dim=1).values
    return OutputScore(
        tokens, float(ranks.mean()), float(best.mean()), float(before.mean()), float(score.mean())
    )
