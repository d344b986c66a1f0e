"""From files to SAEs ready to encode: their weights, and whether they are whole."""

from pathlib import Path

import torch

from saescope.engine.pages import give_back, mapped_pages
from saescope.engine.sae import Sae
from saescope.errors import SourceError
from saescope.sources.catalog import SaeSpec, layer_file
from saescope.sources.files import fingerprint
from saescope.sources.formats import qwen_scope
from saescope.sources.saes import SaeSource, open_sae, release_name


def load_sae(
    source: SaeSource | str | Path,
    layer: int,
    *,
    k: int | None = None,
    decoder: bool = True,
    device: str | torch.device = "cpu",
    offline: bool = False,
) -> Sae:
    """One layer's SAE in float32; without `decoder` its half of the file is never read.

    Raises SourceError for a missing layer, a damaged file, or weights that are not finite.
    """
    if not isinstance(source, SaeSource):
        source = open_sae(str(source), k=k, offline=offline)
    source.choose([layer])
    path = source.files.path(layer_file(layer))
    weights = qwen_scope.read(path)
    d_sae, d_model = weights.W_enc.shape
    if not 1 <= source.k <= d_sae:
        raise SourceError(f"k is {source.k}, but {path} has {d_sae} features: give the SAE's own k with --k")
    used = weights if decoder else weights[:2]
    for name, tensor in zip(weights._fields, used, strict=False):
        if not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():  # one pass, no copy; NaN carries through
            raise SourceError(f"{path}: {name} has values that are not finite: the file is damaged")
    spec = SaeSpec(
        release=release_name(source.files),
        revision=source.files.revision,
        layer=layer,
        d_model=d_model,
        d_sae=d_sae,
        k=source.k,
        activation="topk",
        trained_on=source.trained_on,
        fingerprint=fingerprint(path),
    )
    tensors = dict(zip(weights._fields, (tensor.to(device) for tensor in used), strict=False))
    mapped = tuple(mapped_pages([tensors["W_enc"]]))
    give_back(mapped)
    return Sae(spec, **tensors, source=source.files.source, mapped=mapped)
