"""Which tokens a feature's direction raises and lowers: the logit lens.

The effect is lm_head · (γ ⊙ d), with the final norm's gain γ and the decoder column d. The lm_head
stays mapped from its file and is converted chunk by chunk, so a layer of many features needs the
memory of one batch of them.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.exports.firings import Histogram
from saescope.control.exports.logit_effect import LogitEffect, TokenEffect
from saescope.engine.anatomy import Anatomy, read_anatomy
from saescope.engine.gains import norm_gains
from saescope.engine.lm import read_tokenizer
from saescope.engine.load import fingerprint_as, load_sae
from saescope.engine.sae import Sae
from saescope.engine.shards import Shards
from saescope.engine.tokens import TokenText
from saescope.errors import SourceError
from saescope.sources.files import open_files
from saescope.store.runs import Run

_CHUNK = 2**24  # values of the lm_head that are converted to float32 at a time
_BATCH = 64  # features whose logits over the whole vocabulary are held at once
_N_TOKENS = 10


@final
class LogitLens:
    """The effects of a run's features on the logits of its model, both named in its manifest.

    >>> import tempfile
    >>> import saescope as ss
    >>> lm, sae = ss.load_lm("saescope-tiny", [2]), ss.load_sae("saescope-tiny-sae", 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = ss.extract(lm, [sae], ss.bundled_prompts()[:2], f"{folder}/run")
    ...     [effect] = ss.exports.LogitLens(run)(2, [5])
    >>> len(effect.raised), effect.raised[0].value > 0
    (10, True)
    """

    def __init__(self, run: Run, *, offline: bool = False) -> None:
        files = open_files(str(run.manifest["inputs"]["model"]), offline=offline)
        tokenizer, _ = read_tokenizer(files)
        self._run = run
        self._offline = offline
        self._anatomy: Anatomy = read_anatomy(files)
        self._shards = Shards.open(files)
        self._norm_weight, self._subtracts_mean = self._final_norm()
        self._n_tokens = len(tokenizer)
        self._token_text = TokenText(tokenizer)
        self._sae: Sae | None = None

    def __call__(self, layer: int, ids: Sequence[int]) -> list[LogitEffect]:
        """Return the effect of each feature; raises SourceError if the SAE is not the run's."""
        sae = self._load_sae(layer)
        assert sae.W_dec is not None
        effects = []
        for batch in torch.as_tensor(ids, dtype=torch.long).split(_BATCH):
            directions = sae.W_dec[:, batch].T.float()
            effects += [self._effect(logits) for logits in self._logits(directions)]
        return effects

    def _final_norm(self) -> tuple[Float[Tensor, "d_model"], bool]:
        """Return the final norm's gain, and whether it subtracts the mean as LayerNorm does."""
        name = str(self._anatomy.head.norm)
        stored = f"{self._anatomy.prefix}{name}"
        if f"{stored}.bias" in self._shards.places:
            return self._shards.tensor(f"{stored}.weight").float(), True
        gains = norm_gains(self._shards, self._anatomy, [name])
        return gains[name].float(), False

    def _load_sae(self, layer: int) -> Sae:
        if self._sae is not None and self._sae.spec.layer == layer:
            return self._sae
        spec = self._run.saes[layer]
        source = self._run.manifest["inputs"]["saes"][str(layer)]
        sae = load_sae(source, layer, k=spec.k, offline=self._offline)
        if fingerprint_as(sae, spec.fingerprint) != spec.fingerprint:
            raise SourceError(
                f"{source} is not the SAE that made {self._run.path}: layer {layer} differs"
            )
        self._sae = sae
        return sae

    @torch.inference_mode()
    def _logits(self, directions: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        if self._subtracts_mean:
            directions = directions - directions.mean(dim=1, keepdim=True)
        normed = directions * self._norm_weight
        head = self._anatomy.embedding if self._anatomy.tied else self._anatomy.head
        W = self._shards.tensor(head.stored[0])
        chunks = W.split(max(1, _CHUNK // W.shape[1]))
        return torch.cat([normed @ chunk.float().T for chunk in chunks], dim=1)

    def _effect(self, logits: Float[Tensor, "vocab"]) -> LogitEffect:
        logits = logits[: self._n_tokens]  # models pad their vocabulary with rows that have no text
        n = min(_N_TOKENS, len(logits))
        raised = self._token_effects(logits.topk(n))
        lowered = self._token_effects(logits.topk(n, largest=False))
        return LogitEffect(raised, lowered, Histogram.of(logits.numpy()))

    def _token_effects(self, top: Any) -> list[TokenEffect]:
        effects = []
        for token, value in zip(top.indices.tolist(), top.values.tolist(), strict=True):
            effects.append(TokenEffect(self._token_text(token), value))
        return effects
