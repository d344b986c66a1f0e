"""From files to SAEs ready to encode: their weights, and whether they are whole."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saescope.engine.pages import mapped_pages, release_pages
from saescope.engine.sae import Decoder, Sae
from saescope.errors import SourceError
from saescope.sources.catalog import Format, SaeSpec
from saescope.sources.files import Files
from saescope.sources.fingerprints import EARLIER, fingerprint_like, scheme_of
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
from saescope.sources.stored_files import StoredFile, stored_files

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

    `source` is a folder, a hub id, or what `open_sae` returned. `k` is needed only if the files do
    not state it. Raises SourceError for a missing layer, a damaged file, weights that are not
    finite, or an SAE with another formula than the engine's.

    >>> import saescope as ss
    >>> sae = ss.load_sae("saescope-tiny-sae", layer=2)
    >>> sae.spec.d_sae, sae.spec.k, sae.W_enc.shape
    (512, 32, torch.Size([512, 192]))
    """
    if not isinstance(source, SaeSource):
        source = open_sae(str(source), k=k, offline=offline)
    place = source.locate(layer)
    path, settings = source.files.path(place.weights), _read_settings(source.files, place)
    weights = _READERS[place.format](path, settings.config)
    needed = _needed_tensors(weights, decoder)
    tensors = {name: _checked(path, name, needed[name], device) for name in needed}
    files = stored_files(source.files, _decisive_names(place, settings.files))
    spec = _spec(source, layer, weights, files)
    mapped = tuple(mapped_pages([tensors["W_enc"]]))
    release_pages(mapped)
    return Sae(
        spec,
        **tensors,
        source="/".join(filter(None, [source.files.source, place.folder])),
        mapped=mapped,
        read_decoder=_decoder_reader(path, settings.config, place.format, weights),
        input_norm=weights.input_norm,
        files=files,
        files_source=source.files.source,
    )


class SaeShape(NamedTuple):
    """How many features an SAE has, and whether it has a k."""

    d_sae: int
    has_k: bool


def sae_shape(source: SaeSource, layer: int) -> SaeShape:
    """Return the shape of one layer's SAE, without reading its weights if they are mapped.

    Raises SourceError for a missing layer or a damaged file.
    """
    place = source.locate(layer)
    path = source.files.path(place.weights)
    weights = _READERS[place.format](path, _read_settings(source.files, place).config)
    return SaeShape(len(weights.b_enc), weights.activation == "topk")


def _spec(
    source: SaeSource, layer: int, weights: SaeWeights, files: Sequence[StoredFile]
) -> SaeSpec:
    place = source.locate(layer)
    return SaeSpec(
        release=release_name(source.files),
        revision=source.files.revision,
        layer=layer,
        d_model=len(weights.b_dec),
        d_sae=len(weights.b_enc),
        k=_choose_k(files[0].path, source.k, weights),
        activation=weights.activation,
        trained_on=source.trained_on,
        fingerprint=_fingerprint([file.fingerprint for file in files]),
        format=place.format,
        path=place.folder,
    )


def _decoder_reader(
    path: Path, config: Config, kind: Format, weights: SaeWeights
) -> Callable[[], Decoder]:
    """Return what gives the decoder, without holding it in memory until then."""
    mapped = Decoder(weights.W_dec, weights.b_dec)
    if mapped_pages([mapped.W_dec]):
        return lambda: mapped

    def read_again() -> Decoder:
        weights = _READERS[kind](path, config)
        return Decoder(weights.W_dec, weights.b_dec)

    return read_again


def _needed_tensors(weights: SaeWeights, decoder: bool) -> dict[str, Tensor]:
    tensors = {"W_enc": weights.W_enc, "b_enc": weights.b_enc}
    if weights.threshold is not None:
        tensors["threshold"] = weights.threshold
    if decoder:
        tensors |= {"W_dec": weights.W_dec, "b_dec": weights.b_dec}
    return tensors


class _Settings(NamedTuple):
    """An SAE's config, and the files that it was read from."""

    config: Config
    files: tuple[str, ...]


def _read_settings(files: Files, place: SaeLocation) -> _Settings:
    """Read the config; for a checkpoint of SAELens' training, also the scale of its input."""
    if not place.config:
        return _Settings({}, ())
    config = read_sae_config(files, place.config)
    read = (place.config,) if config else ()
    if place.format != "saelens" or not saelens.needs_scale(config):
        return _Settings(config, read)
    name = "/".join(filter(None, [place.folder, saelens.SCALE_FILE]))
    try:
        files.path(name)
    except SourceError:
        return _Settings(config, read)
    scale = read_sae_config(files, name).get("scaling_factor")
    return _Settings({saelens.SCALE_KEYS[0]: scale, **config}, (*read, name))


def _decisive_names(place: SaeLocation, settings: Sequence[str]) -> list[str]:
    """Return the files that decide what the SAE computes; of Qwen-Scope's config k is known."""
    return [place.weights, *(settings if place.format != "qwen-scope" else ())]


def fingerprint_as(sae: Sae, stored: str) -> str:
    """The SAE's fingerprint in the scheme of a stored one, which an earlier version may have made.

    Raises SourceError if the SAE's files are gone.
    """
    if scheme_of(stored) != EARLIER or not sae.files:
        return sae.spec.fingerprint
    return _fingerprint([fingerprint_like(file.path, stored) for file in sae.files])


def _checked(path: Path, name: str, tensor: Tensor, device: str | torch.device) -> Tensor:
    """In float32, on the device; raises SourceError for values that are not finite."""
    extremes = torch.stack(torch.aminmax(tensor))  # one pass, no copy; NaN carries through
    if not torch.isfinite(extremes).all():
        raise SourceError(f"{path}: {name} has values that are not finite: the file is damaged")
    return tensor.to(device, torch.float32)


def _choose_k(path: Path, requested: int | None, weights: SaeWeights) -> int | None:
    """Return the requested k, or else the file's k; None for SAEs with thresholds."""
    if weights.activation != "topk":
        if requested is not None:
            raise SourceError(
                f"k is {requested}, but {path} has no k: this SAE uses thresholds, not TopK"
            )
        return None
    k = weights.k if requested is None else requested
    n_features = len(weights.b_enc)
    if k is None or not 1 <= k <= n_features:
        raise SourceError(
            f"k is {k}, but {path} has {n_features} features: pass the SAE's own, k=K"
        )
    return k


def _fingerprint(fingerprints: Sequence[str]) -> str:
    """Return the fingerprint of the weights, and of the config if it decides what they mean."""
    of_weights, *of_settings = fingerprints
    if not of_settings:
        return of_weights
    scheme, _, digest = of_weights.partition(":")
    digests = " ".join([digest, *of_settings])
    return f"{scheme}:{hashlib.sha256(digests.encode()).hexdigest()}"
