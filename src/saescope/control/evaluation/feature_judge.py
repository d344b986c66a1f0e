"""A judge by the features that fire in a reply, when the unedited model reads prompt and reply."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.evaluation.behaviour import FeatureRule
from saescope.control.evaluation.judge import UNSCORED, Label, Reply
from saescope.engine.answers import reply_parts
from saescope.engine.batches import divide_into_batches, lay_out
from saescope.engine.lm import LM
from saescope.engine.magnitudes import peaks_of
from saescope.engine.residual import capture
from saescope.engine.sae import Sae
from saescope.engine.tokens import prompt_ids
from saescope.errors import PromptError
from saescope.store.masking import Magnitudes, Masking
from saescope.store.run_positions import any_layer, join_sinks

_BATCH_TOKENS = 2048
Bools = npt.NDArray[np.bool_]


@final
@dataclass(frozen=True)
class FeatureJudge:
    """Labels a reply by the share of its tokens on which any feature of the rule fires.

    Tokens of its thinking and attention sinks do not count; a reply without tokens that count is
    UNSCORED. Use it outside of `steered`. Raises PromptError if no SAE has one of the features.

    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", layers=[1])
    >>> sae = ss.load_sae("saescope-tiny-sae", 1)
    >>> judge = ss.judges.FeatureJudge(lm, [sae], ss.judges.read_behaviour("feature:1/1@0.5"))
    >>> prompt, text = ss.texts(["丘が"])[0].prompts[0], "あります。"
    >>> judge.label_all([ss.judges.Reply(prompt, lm.tokenizer(text)["input_ids"], text)])
    ['1.00 of tokens']
    """

    lm: LM
    saes: Sequence[Sae]
    rule: FeatureRule
    thinking: bool | None = None
    "Tell the chat template to think, or not to. Default: the template's own."

    def __post_init__(self) -> None:
        sizes = {sae.spec.layer: sae.spec.d_sae for sae in self.saes}
        for feature in self.rule.features:
            if feature.id >= sizes.get(feature.layer, 0):
                layers = ", ".join(map(str, sorted(sizes)))
                raise PromptError(
                    f"behaviour {self.rule}: no SAE passed has {feature}; layers passed: {layers}"
                )

    def label_all(self, replies: Sequence[Reply]) -> list[Label]:
        """The share as text if it is large enough, else None."""
        return [self._label(share) for share in self.shares(replies)]

    def describe(self) -> dict[str, Any]:
        """The rule."""
        features = [str(feature) for feature in self.rule.features]
        return {"name": str(self.rule), "features": features, "share": self.rule.share}

    def _label(self, share: float | None) -> Label:
        if share is None:
            return UNSCORED
        return f"{share:.2f} of tokens" if share >= self.rule.share else None

    def shares(self, replies: Sequence[Reply]) -> list[float | None]:
        """Per reply, the share of its tokens on which a feature fires; None if no token counts."""
        starts = [prompt_ids(self.lm, reply.prompt, thinking=self.thinking) for reply in replies]
        rows = [[*start, *reply.ids] for start, reply in zip(starts, replies, strict=True)]
        layers = sorted({feature.layer for feature in self.rule.features})
        answers = [
            len(start) + self._n_thinking(reply, start)
            for start, reply in zip(starts, replies, strict=True)
        ]
        shares: list[float | None] = [None] * len(rows)
        for batch in divide_into_batches([len(row) for row in rows], _BATCH_TOKENS, packed=False):
            tokens = lay_out(batch, rows, self.lm.device)
            mask = tokens.mask.long()
            with torch.inference_mode(), capture(self.lm, layers) as resid:
                self.lm.model(input_ids=tokens.ids, attention_mask=mask, use_cache=False)
            for line, [number] in enumerate(batch):
                length = len(rows[number])
                of_row = {layer: resid[layer][line, :length] for layer in layers}
                shares[number] = self._share(of_row, answers[number])
        return shares

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a reply that is known as text only."""
        ids: list[int] = self.lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _n_thinking(self, reply: Reply, start: Sequence[int]) -> int:
        """The number of a reply's tokens that come before its answer."""
        return reply_parts(self.lm.tokenizer, reply.prompt, start, reply.ids).n_thinking

    def _share(self, resid: dict[int, Float[Tensor, "pos d_model"]], start: int) -> float | None:
        """The share of an answer that begins at position `start`; `resid` by layer."""
        n_pos = len(next(iter(resid.values())))
        fires, counts = np.zeros(n_pos, bool), _scored(resid)
        for sae in self.saes:
            layer = sae.spec.layer
            if layer in resid:
                fires |= self._fires(sae, resid[layer].float())
        fires, counts = fires[start:], counts[start:]
        return float(fires[counts].mean()) if counts.any() else None

    def _fires(self, sae: Sae, h: Float[Tensor, "pos d_model"]) -> Bools:
        """Whether one of the rule's features of this SAE fires, by position."""
        ids = [feature.id for feature in self.rule.features if feature.layer == sae.spec.layer]
        features = sae.encode(h)
        of_rule = torch.isin(features.ids, torch.tensor(ids, device=features.ids.device))
        fires = of_rule & (features.acts > 0)
        return np.asarray(fires.any(dim=-1).cpu().numpy())


def _scored(resid: Mapping[int, Float[Tensor, "pos d_model"]]) -> Bools:
    """Positions that count: all but the first and attention sinks of any of these layers."""
    pos, masking = np.arange(len(next(iter(resid.values())))), Masking()
    layers = ((layer, _magnitudes(of_layer.float())) for layer, of_layer in resid.items())
    sinks = any_layer(len(pos), join_sinks(pos, layers, masking).values())
    return masking.positions(pos, sinks).scored


def _magnitudes(h: Float[Tensor, "pos d_model"]) -> Magnitudes:
    norms = h.norm(dim=-1)
    return Magnitudes(norms.cpu().numpy(), peaks_of(h, norms).cpu().numpy())
