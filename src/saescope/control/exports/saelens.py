"""SAEs in the format of SAELens 6: cfg.json and sae_weights.safetensors, for `SAE.load_from_disk`.

SAELens stores W_enc as (d_model, d_sae) and W_dec as (d_sae, d_model). Both are transposed chunk by
chunk while they are written, so an SAE of any size needs the memory of one chunk.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saescope.control.exports.export_result import ExportResult, files_in
from saescope.control.exports.tensors import StoredTensor, write_safetensors
from saescope.engine.load import load_sae
from saescope.engine.pages import mapped_pages, release_pages
from saescope.engine.sae import Sae
from saescope.errors import SourceError
from saescope.sources.saes import SaeSource, open_sae
from saescope.store.atomic import atomic_folder, refuse_full_disk

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
EQUALS = "the same features: SAELens encodes to these activations, and to 0 where none is stored"
# The SAELens version that wrote this kind of config. Without one SAELens takes it for an old config
# and fills it with defaults.
_VERSION = "6.0.0"


def export_saelens(
    sae: SaeSource | str | Path,
    out: str | Path,
    *,
    layers: Sequence[int] | None = None,
    model_name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExportResult:
    """Write SAEs for SAELens, one layer at a time. Default: the middle layer.

    A single layer is written to `out` itself, several to folders named by their hook points.
    `model_name` is the model that SAELens would load. Default: the one the SAE was trained on.

    Raises SourceError for an activation that SAELens lacks, and ResourceError if `out` exists.

    >>> import tempfile
    >>> import saescope as ss
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = ss.exports.saelens("saescope-tiny-sae", f"{folder}/sae", layers=[2])
    >>> [path.name for path in result.files]
    ['cfg.json', 'sae_weights.safetensors']
    """
    out = Path(out).expanduser()
    source = sae
    if not isinstance(source, SaeSource):
        source = open_sae(str(sae))
    layers = source.choose_layers(layers)
    with atomic_folder(out) as staging:
        for n_done, layer in enumerate(layers, start=1):
            loaded = load_sae(source, layer)
            refuse_full_disk(out, _n_bytes(loaded))
            folder = staging
            if len(layers) > 1:
                folder = staging / hook_point(layer)
                folder.mkdir()
            _write(loaded, folder, model_name)
            if progress:
                progress(n_done, len(layers))
    measured = {"layers": list(layers)}
    return ExportResult("saelens", out, files_in(out), True, EQUALS, measured=measured)


def hook_point(layer: int) -> str:
    """Return TransformerLens' name of a block's output."""
    return f"blocks.{layer}.hook_resid_post"


def saelens_config(sae: Sae, model_name: str | None) -> dict[str, Any]:
    """Return SAELens' config of an SAE; raises SourceError for an activation that SAELens lacks."""
    spec = sae.spec
    return {
        "d_in": spec.d_model,
        "d_sae": spec.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": sae.input_norm,
        "reshape_activations": "none",
        **_architecture(sae),
        "metadata": {
            "sae_lens_version": _VERSION,
            "model_name": model_name or spec.trained_on,
            "hook_name": hook_point(spec.layer),
            "hf_hook_name": f"model.layers.{spec.layer}",
            "hook_head_index": None,
            "prepend_bos": False,
            "source": spec.release,
            "source_revision": spec.revision,
        },
    }


def _architecture(sae: Sae) -> Mapping[str, Any]:
    """Return SAELens' name of the activation; a trained BatchTopK SAE is a JumpReLU."""
    match sae.spec.activation:
        case "topk":
            return {"architecture": "topk", "k": sae.spec.k, "rescale_acts_by_decoder_norm": False}
        case "jumprelu" | "batchtopk" if sae.threshold is not None:
            return {"architecture": "jumprelu"}
        case "relu":
            return {"architecture": "standard"}
    raise SourceError(f"SAELens has no activation {sae.spec.activation}: export another SAE")


def _n_bytes(sae: Sae) -> int:
    """Return the size of the SAE's tensors in float32."""
    n_vectors = 3  # b_enc, threshold, and b_dec, which is no longer than they are
    return 4 * sae.spec.d_sae * (2 * sae.spec.d_model + n_vectors)


def _write(sae: Sae, folder: Path, model_name: str | None) -> None:
    if sae.W_dec is None or sae.b_dec is None:
        raise SourceError(f"the SAE of layer {sae.spec.layer} was loaded without its decoder")
    config = json.dumps(saelens_config(sae, model_name), indent=1, ensure_ascii=False)
    (folder / CONFIG).write_text(config + "\n", encoding="utf-8")
    tensors = {
        "W_enc": StoredTensor(sae.W_enc, transposed=True),
        "b_enc": StoredTensor(sae.b_enc),
        "W_dec": StoredTensor(sae.W_dec, transposed=True),
        "b_dec": StoredTensor(sae.b_dec),
    }
    if sae.threshold is not None:
        # With a threshold below 0 SAELens would let negative pre-activations through.
        tensors["threshold"] = StoredTensor(sae.threshold.clamp(min=0))
    write_safetensors(folder / WEIGHTS, tensors, {"format": "pt"})
    release_pages(mapped_pages([sae.W_enc, sae.W_dec]))
