"""Each token's strongest features, for a few prompts and in memory: what a person looks at first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from saescope.engine.batches import BATCH_TOKENS, plan_batches
from saescope.engine.extract import choose_batch_kernels, compute
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.engine.tokens import TokenText
from saescope.errors import PromptError
from saescope.sources.catalog import Feature
from saescope.sources.prompts import Prompt
from saescope.store.masking import Masking
from saescope.store.tables import LayerFeatures
from saescope.table import Table


@dataclass(frozen=True)
class ScannedToken:
    """One token: where it is, its norm and its strongest features in every layer, and whether it is a sink there."""

    pos: int
    id: int
    token: str
    sink: bool
    norm: dict[int, float]
    features: dict[int, list[tuple[Feature, float]]]

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope scan`."""
        return {
            "pos": self.pos,
            "id": self.id,
            "token": self.token,
            "sink": self.sink,
            "norm": {str(layer): norm for layer, norm in self.norm.items()},
            "features": {
                str(layer): [{"feature": str(feature), "act": act} for feature, act in top]
                for layer, top in self.features.items()
            },
        }


@dataclass(frozen=True)
class ScannedPrompt:
    """One prompt's tokens in order."""

    text: str
    tokens: list[ScannedToken]

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope scan`."""
        return {"text": self.text, "tokens": [token.to_dict() for token in self.tokens]}


@final
@dataclass(frozen=True)
class Scan(Table):
    """The answer to `scan`."""

    prompts: list[ScannedPrompt]

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope scan`."""
        return {"prompts": [prompt.to_dict() for prompt in self.prompts]}

    def rows(self) -> list[dict[str, Any]]:
        """A row a token, layer and feature that fires, strongest first."""
        return [
            {"prompt": n, "pos": t.pos, "token": t.token, "sink": t.sink, "layer": layer, "norm": t.norm[layer],
             "rank": rank, "feature": str(feature), "act": act}
            for n, prompt in enumerate(self.prompts)
            for t in prompt.tokens
            for layer, top in t.features.items()
            for rank, (feature, act) in enumerate(top)
        ]  # fmt: skip


def scan(
    lm: LM,
    saes: Sequence[Sae],
    prompts: Sequence[Prompt],
    *,
    n_top: int = 5,
    masking: Masking | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> Scan:
    """The `n_top` strongest features of every token that fire, by layer; sinks are judged over these prompts."""
    if n_top < 1:
        raise PromptError(f"n_top must be at least 1, got {n_top}")
    work = plan_batches(lm, prompts, batch_tokens)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in work.rows])])
    orders = (work.order(n) for n in range(len(work.batches)))
    order = np.concatenate(
        [np.arange(starts[p], starts[p + 1]) for prompts in orders for p in prompts]
    )
    found = compute(lm, saes, work, kernels=choose_batch_kernels(lm, work))
    parts = {(number, layer): features for number, layer, features, _ in found}
    numbers = range(len(work.batches))
    back = np.argsort(order)
    layers = {
        n: LayerFeatures.joined([parts[number, n] for number in numbers]).take(back)
        for n in (sae.spec.layer for sae in saes)
    }
    pos = np.concatenate([np.arange(len(row)) for row in work.rows])
    rule = masking or Masking()
    sinks = np.any([rule.apply(pos, features.norms).sinks for features in layers.values()], axis=0)
    text = TokenText(lm.tokenizer)
    scanned = [
        ScannedPrompt(
            text=prompt.display_text,
            tokens=[
                ScannedToken(
                    pos=at,
                    id=token,
                    token=text(token),
                    sink=bool(sinks[row]),
                    norm={layer: float(f.norms[row]) for layer, f in layers.items()},
                    features={layer: _top(layer, f, row, n_top) for layer, f in layers.items()},
                )
                for at, (row, token) in enumerate(
                    zip(range(start, start + len(ids)), ids, strict=True)
                )
            ],
        )
        for prompt, ids, start in zip(prompts, work.rows, starts[:-1].tolist(), strict=True)
    ]
    return Scan(scanned)


def _top(layer: int, features: LayerFeatures, row: int, n_top: int) -> list[tuple[Feature, float]]:
    own = features.row(row)
    pairs = zip(
        features.ids[own][:n_top].tolist(), features.acts[own][:n_top].tolist(), strict=True
    )
    return [(Feature(layer, feature), act) for feature, act in pairs]
