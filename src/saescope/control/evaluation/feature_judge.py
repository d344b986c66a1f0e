"""Whether a reply shows a behaviour by what fires in it: prompt and reply are read by the model without edits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from saescope.control.evaluation.behaviour import UNSCORED, FeatureRule, Label, Reply
from saescope.engine.lm import LM
from saescope.engine.residual import capture
from saescope.engine.sae import Sae
from saescope.engine.tokens import lay_out, plan_batches, prompt_ids
from saescope.errors import PromptError
from saescope.store.masking import Masking

_TOKENS = 2048


@final
@dataclass(frozen=True)
class ByFeature:
    """Judges replies by the share of their tokens on which any feature of the rule fires, sinks left out.

    A reply of which no token counts is UNSCORED. Must be asked outside of any steering.
    """

    lm: LM
    saes: Sequence[Sae]
    rule: FeatureRule
    thinking: bool | None = None

    def __post_init__(self) -> None:
        have = {sae.spec.layer: sae.spec.d_sae for sae in self.saes}
        for feature in self.rule.features:
            if feature.id >= have.get(feature.layer, 0):
                layers = ", ".join(map(str, sorted(have)))
                raise PromptError(
                    f"behaviour {self.rule}: no SAE here has {feature}; SAEs are of layers {layers}"
                )

    def describe(self) -> dict[str, Any]:
        """The rule."""
        return {
            "name": str(self.rule),
            "features": list(map(str, self.rule.features)),
            "share": self.rule.share,
        }

    def label_all(self, replies: Sequence[Reply]) -> list[Label]:
        """The share as text where it is enough."""
        return [
            UNSCORED
            if share is None
            else f"{share:.2f} of tokens"
            if share >= self.rule.share
            else None
            for share in self.shares(replies)
        ]

    def shares(self, replies: Sequence[Reply]) -> list[float | None]:
        """Of every reply the share of its tokens on which a feature fires; None where no token counts."""
        starts = [prompt_ids(self.lm, reply.prompt, thinking=self.thinking) for reply in replies]
        rows = [[*start, *reply.ids] for start, reply in zip(starts, replies, strict=True)]
        layers = sorted({feature.layer for feature in self.rule.features})
        shares: list[float | None] = [None] * len(rows)
        for batch in plan_batches([len(row) for row in rows], _TOKENS, packed=False):
            tokens = lay_out(batch, rows, self.lm.device)
            with torch.inference_mode(), capture(self.lm, layers) as resid:
                self.lm.model(
                    input_ids=tokens.ids, attention_mask=tokens.mask.long(), use_cache=False
                )
            for line, [number] in enumerate(batch):
                own = slice(0, len(rows[number]))
                shares[number] = self._share(
                    {n: resid[n][line, own] for n in layers}, len(starts[number])
                )
        return shares

    def _share(self, resid: dict[int, torch.Tensor], start: int) -> float | None:
        """Of one prompt and reply (pos, d_model) by layer, counted from the reply's first token."""
        fires, scored = [], []
        for sae in self.saes:
            ids = [feature.id for feature in self.rule.features if feature.layer == sae.spec.layer]
            if not ids:
                continue
            h = resid[sae.spec.layer].float()
            found = sae.encode(h)
            hit = torch.isin(found.ids, torch.tensor(ids, device=found.ids.device)) & (
                found.acts > 0
            )
            fires.append(hit.any(dim=-1).cpu().numpy()[start:])
            norms = h.norm(dim=-1).cpu().numpy()
            scored.append(Masking().apply(np.arange(len(norms)), norms).scored[start:])
        counts = np.all(scored, axis=0)
        return float(np.any(fires, axis=0)[counts].mean()) if counts.any() else None
