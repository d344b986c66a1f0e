"""Which tokens a feature's direction raises and lowers: lm_head · (γ ⊙ d), the final norm's gain γ with it.

The lm_head stays mapped from its file and is converted a piece at a time, so a layer of many features is read in the
memory of one batch of them.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.control.exports.firings import histogram
from saescope.control.exports.neuronpedia import Effect
from saescope.engine.anatomy import Anatomy, read_anatomy
from saescope.engine.gains import norm_gains
from saescope.engine.lm import read_tokenizer
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae
from saescope.engine.shards import Shards
from saescope.engine.tokens import TokenText
from saescope.errors import SourceError
from saescope.sources.files import open_files
from saescope.store.runs import Run

_PIECE = 2**24  # values of the lm_head in float32 at a time
_FEATURES = 64  # whose logits over the whole vocabulary are held at once
_SHOWN = 10


@final
class LogitLens:
    """The effects of a run's features on the logits of its model; both are opened again from its manifest."""

    def __init__(self, run: Run, *, offline: bool = False) -> None:
        source = str(run.manifest["inputs"]["model"])
        files = open_files(source, offline=offline)
        self._run, self._offline = run, offline
        self._anatomy: Anatomy = read_anatomy(files)
        self._shards = Shards.open(files)
        self._gain, self._centred = self._final_norm()
        tokenizer, _ = read_tokenizer(files)
        self._known, self._text = len(tokenizer), TokenText(tokenizer)
        self._sae: Sae | None = None

    def __call__(self, layer: int, ids: Sequence[int]) -> list[Effect]:
        """An effect for each feature; raises SourceError where the SAE is not what the run was made with."""
        found: list[Effect] = []
        for start in range(0, len(ids), _FEATURES):
            logits = self._logits(self._directions(layer, ids[start : start + _FEATURES]))
            found += map(self._effect, logits)
        return found

    def _final_norm(self) -> tuple[Float[Tensor, "d_model"], bool]:
        """Its gain, and whether it subtracts the mean as well (LayerNorm)."""
        name = str(self._anatomy.head.norm)
        stored = f"{self._anatomy.prefix}{name}"
        if f"{stored}.bias" in self._shards.places:
            return self._shards.tensor(f"{stored}.weight").float(), True
        return norm_gains(self._shards, self._anatomy, [name])[name].float(), False

    def _directions(self, layer: int, ids: Sequence[int]) -> Float[Tensor, "n d_model"]:
        if self._sae is None or self._sae.spec.layer != layer:
            spec = self._run.saes[layer]
            source = self._run.manifest["inputs"]["saes"][str(layer)]
            self._sae = load_sae(source, layer, k=spec.k, offline=self._offline)
            if self._sae.spec.fingerprint != spec.fingerprint:
                raise SourceError(
                    f"{source} is not the SAE that {self._run.path} was made with: layer {layer} differs"
                )
        assert self._sae.W_dec is not None
        return self._sae.W_dec[:, torch.as_tensor(ids)].T.float()

    @torch.inference_mode()
    def _logits(self, d: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        anatomy = self._anatomy
        W = self._shards.tensor((anatomy.embedding if anatomy.tied else anatomy.head).stored[0])
        seen = (d - d.mean(dim=1, keepdim=True) if self._centred else d) * self._gain
        rows = max(1, _PIECE // W.shape[1])
        return torch.cat([seen @ piece.float().T for piece in W.split(rows)], dim=1)

    def _effect(self, logits: Float[Tensor, "vocab"]) -> Effect:
        known = logits[
            : self._known
        ]  # what lies beyond fills up a model's vocabulary and has no text
        raised, lowered = (
            known.topk(min(_SHOWN, len(known)), largest=largest) for largest in (True, False)
        )
        return Effect(self._texts(raised), self._texts(lowered), *histogram(known.numpy()))

    def _texts(self, top: Any) -> list[tuple[str, float]]:
        return [
            (self._text(token), value)
            for token, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
