"""An SAE in the format of SAELens 6: cfg.json and sae_weights.safetensors, what `SAE.load_from_disk` opens.

SAELens holds W_enc as (d_model, d_sae) and W_dec as (d_sae, d_model): both are turned while they are written, a block
at a time, so that an SAE of any size is exported within the memory of a block.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saescope.control.exports.export_result import ExportResult, files_in
from saescope.control.exports.tensors import Stored, write_safetensors
from saescope.engine.load import load_sae
from saescope.engine.pages import mapped_pages, release_pages
from saescope.engine.sae import Sae
from saescope.errors import SourceError
from saescope.sources.saes import SaeSource, open_sae
from saescope.store.atomic import atomic_folder, refuse_full_disk

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
# The version of SAELens whose config this is; without one it would be read as an old config and filled with defaults.
_VERSION = "6.0.0"
EQUALS = "the same features: SAELens' encode gives these activations where they are not 0, and 0 elsewhere"


def export_saelens(
    sae: SaeSource | str | Path,
    out: str | Path,
    *,
    layers: Sequence[int] | None = None,
    model_name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExportResult:
    """Write the SAEs of these layers (the middle one where none is named), one at a time.

    One layer lies in `out` itself, several in folders named by their hook points. `model_name` is that of the model that
    SAELens would load, the one the SAE was trained on where it is left out. Raises SourceError for an SAE whose
    activation SAELens has not.
    """
    out = Path(out).expanduser()
    source = sae if isinstance(sae, SaeSource) else open_sae(str(sae))
    layers = source.choose_layers(layers)
    with atomic_folder(out) as folder:
        for done, layer in enumerate(layers):
            loaded = load_sae(source, layer)
            refuse_full_disk(out, 4 * (2 * loaded.spec.d_model + 3) * loaded.spec.d_sae)
            place = folder if len(layers) == 1 else folder / hook_point(layer)
            place.mkdir(exist_ok=True)
            _write(loaded, place, model_name)
            if progress:
                progress(done + 1, len(layers))
    return ExportResult("saelens", out, files_in(out), True, EQUALS, (), {"layers": list(layers)})


def hook_point(layer: int) -> str:
    """TransformerLens' name of a block's output."""
    return f"blocks.{layer}.hook_resid_post"


def config(sae: Sae, model: str | None) -> dict[str, Any]:
    """SAELens' config of an SAE; raises SourceError for an activation that it does not have."""
    spec = sae.spec
    return {
        "d_in": spec.d_model,
        "d_sae": spec.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **_activation(sae),
        "metadata": {
            "sae_lens_version": _VERSION,
            "model_name": model or spec.trained_on,
            "hook_name": hook_point(spec.layer),
            "hf_hook_name": f"model.layers.{spec.layer}",
            "hook_head_index": None,
            "prepend_bos": False,
            "source": spec.release,
            "source_revision": spec.revision,
        },
    }


def _activation(sae: Sae) -> Mapping[str, Any]:
    """SAELens' name of an activation; BatchTopK is JumpReLU once it is trained, there as here."""
    match sae.spec.activation:
        case "topk":
            return {"architecture": "topk", "k": sae.spec.k, "rescale_acts_by_decoder_norm": False}
        case "jumprelu" | "batchtopk" if sae.threshold is not None:
            return {"architecture": "jumprelu"}
        case "relu":
            return {"architecture": "standard"}
    raise SourceError(f"SAEs with the activation {sae.spec.activation} are not exported to SAELens")


def _write(sae: Sae, folder: Path, model: str | None) -> None:
    if sae.W_dec is None or sae.b_dec is None:
        raise SourceError(f"the SAE of layer {sae.spec.layer} was loaded without its decoder")
    text = json.dumps(config(sae, model), indent=1, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    tensors = {
        "W_enc": Stored(sae.W_enc, transposed=True),
        "b_enc": Stored(sae.b_enc),
        "W_dec": Stored(sae.W_dec, transposed=True),
        "b_dec": Stored(sae.b_dec),
    }
    if sae.threshold is not None:  # below 0 SAELens would let through what fires nowhere here
        tensors["threshold"] = Stored(sae.threshold.clamp(min=0))
    write_safetensors(folder / WEIGHTS, tensors, {"format": "pt"})
    release_pages(mapped_pages([sae.W_enc, sae.W_dec]))
