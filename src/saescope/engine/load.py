"""From files to SAEs ready to encode: their weights, and whether they are whole."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from saescope.engine.pages import mapped_pages, release_pages
from saescope.engine.sae import Sae
from saescope.errors import SourceError
from saescope.sources.catalog import Format, SaeSpec
from saescope.sources.files import fingerprint
from saescope.sources.formats import (
    dictionary_learning,
    gemma_scope,
    llama_scope,
    qwen_scope,
    saelens,
    sparsify,
)
from saescope.sources.formats.configs import Config
from saescope.sources.formats.tensors import SaeWeights
from saescope.sources.layouts import SaeLocation, read_sae_config
from saescope.sources.saes import SaeSource, open_sae, release_name

_READERS: Mapping[Format, Callable[[Path, Config], SaeWeights]] = {
    "qwen-scope": qwen_scope.read,
    "saelens": saelens.read,
    "sparsify": sparsify.read,
    "dictionary-learning": dictionary_learning.read,
    "gemma-scope": gemma_scope.read,
    "llama-scope": llama_scope.read,
}


def load_sae(
    source: SaeSource | str | Path,
    layer: int,
    *,
    k: int | None = None,
    decoder: bool = True,
    device: str | torch.device = "cpu",
    offline: bool = False,
) -> Sae:
    """One layer's SAE in float32, ready to encode; its decoder is not read if `decoder` is False.

    Raises SourceError for a missing layer, a damaged file, weights that are not finite, or an SAE whose formula is
    another than the engine's.
    """
    if not isinstance(source, SaeSource):
        source = open_sae(str(source), k=k, offline=offline)
    place = source.locate(layer)
    path = source.files.path(place.weights)
    config = read_sae_config(source.files, place.config) if place.config else {}
    weights = _READERS[place.format](path, config)
    d_sae, d_model = weights.W_enc.shape
    tensors = {"W_enc": weights.W_enc, "b_enc": weights.b_enc}
    if weights.threshold is not None:
        tensors["threshold"] = weights.threshold
    if decoder:
        tensors |= {"W_dec": weights.W_dec, "b_dec": weights.b_dec}
    tensors = {name: _whole(path, name, tensor, device) for name, tensor in tensors.items()}
    spec = SaeSpec(
        release=release_name(source.files),
        revision=source.files.revision,
        layer=layer,
        d_model=d_model,
        d_sae=d_sae,
        k=_own_k(path, source.k, weights),
        activation=weights.activation,
        trained_on=source.trained_on,
        fingerprint=_fingerprint(
            path, source.files.path(place.config) if place.config and config else None, place
        ),
        format=place.format,
        path=place.folder,
    )
    mapped = tuple(mapped_pages([tensors["W_enc"]]))
    release_pages(mapped)
    reopens = "/".join(filter(None, [source.files.source, place.folder]))
    return Sae(spec, **tensors, source=reopens, mapped=mapped)


def _whole(path: Path, name: str, tensor: Tensor, device: str | torch.device) -> Tensor:
    """In float32, on the device; raises SourceError for values that are not finite."""
    if not torch.isfinite(
        torch.stack(torch.aminmax(tensor))
    ).all():  # one pass, no copy; NaN carries through
        raise SourceError(f"{path}: {name} has values that are not finite: the file is damaged")
    return tensor.to(device, torch.float32)


def _own_k(path: Path, given: int | None, weights: SaeWeights) -> int | None:
    if weights.activation != "topk":
        if given is not None:
            raise SourceError(
                f"--k is {given}, but {path} has no k: its features fire over a threshold of their own"
            )
        return None
    k = given if given is not None else weights.k
    if k is None or not 1 <= k <= len(weights.b_enc):
        raise SourceError(
            f"k is {k}, but {path} has {len(weights.b_enc)} features: give the SAE's own k with --k"
        )
    return k


def _fingerprint(path: Path, config: Path | None, place: SaeLocation) -> str:
    """The weights' fingerprint, and where a config decides what they mean, that of both."""
    of_weights = fingerprint(path)
    if config is None or place.format == "qwen-scope":
        return of_weights
    kind, _, digest = of_weights.partition(":")
    both = hashlib.sha256(f"{digest} {fingerprint(config)}".encode()).hexdigest()
    return f"{kind}:{both}"
