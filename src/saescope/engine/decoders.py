"""Decoder directions compared between layers, without ever holding a decoder whole."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from saescope.engine.load import fingerprint_as, load_sae
from saescope.errors import SourceError
from saescope.sources.catalog import Feature
from saescope.store.runs import Run

_BLOCK_BYTES = 128 * 2**20


def decoder_cosines(run: Run, *, offline: bool = False) -> "DecoderCosines":
    """Function of features and a layer, for the SAEs that the run's manifest names.

    It returns the cosine of each feature's decoder direction with every decoder direction of the
    layer, as an array (features, d_sae).

    >>> import tempfile
    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", layers=[2, 3])
    >>> saes = [ss.load_sae("saescope-tiny-sae", layer) for layer in (2, 3)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = ss.extract(lm, saes, ss.texts(["A short text."]), f"{folder}/run")
    ...     cosines = ss.decoder_cosines(run)([ss.Feature(2, 430)], 3)
    >>> cosines.shape, cosines.argmax().item(), cosines.max().item()  # doctest: +ELLIPSIS
    ((1, 512), 430, 0.682...)
    """
    return DecoderCosines(run, offline=offline)


class DecoderCosines:
    """Cosines of features' decoder directions with all of a layer; decoders stay mapped."""

    def __init__(self, run: Run, *, offline: bool) -> None:
        self._run = run
        self._offline = offline

    @torch.inference_mode()
    def __call__(self, features: Sequence[Feature], layer: int) -> npt.NDArray[np.float32]:
        """(features, d_sae) in float32; raises SourceError if an SAE is not the one of the run."""
        directions = torch.stack([self._column(feature) for feature in features])
        W_dec = self._decoder(layer)
        rows = max(1, _BLOCK_BYTES // (4 * W_dec.shape[1]))
        dots = torch.zeros(len(features), W_dec.shape[1])
        squares = torch.zeros(W_dec.shape[1])
        for start in range(0, len(W_dec), rows):
            block = W_dec[start : start + rows]
            dots += directions[:, start : start + rows] @ block
            squares += block.pow(2).sum(0)
        norms = directions.norm(dim=1)[:, None] * squares.sqrt()
        return np.asarray((dots / norms.clamp(min=1e-30)).numpy())

    def _column(self, feature: Feature) -> Tensor:
        return self._decoder(feature.layer)[:, feature.id].clone()

    def _decoder(self, layer: int) -> Tensor:
        source = self._run.manifest["inputs"]["saes"].get(str(layer))
        spec = self._run.saes[layer]
        if source is None:
            raise SourceError(
                f"{self._run.path} does not say where its SAE of layer {layer} came from"
            )
        sae = load_sae(source, layer, k=spec.k, offline=self._offline)
        made_with = fingerprint_as(sae, spec.fingerprint)
        if made_with != spec.fingerprint or sae.W_dec is None:
            raise SourceError(
                f"{source} is not the SAE that {self._run.path} was made with: "
                f"its layer {layer} differs"
            )
        return sae.W_dec
