"""Edits that add a vector, as a control vector in GGUF: what llama.cpp's --control-vector takes.

llama.cpp adds tensor `direction.{L}` to what block L has written, at every position: the residual this project calls
resid_post of layer L (its `build_cvec(cur, il)` stands after the block's last addition). Block 0 has no such place.
The file is a header, three values and a few vectors, so it is written here and not by a library; the `gguf` package
reads it in the tests. Format: github.com/ggml-org/ggml, docs/gguf.md, version 3.
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from saescope.control.baking.distance import distance
from saescope.control.baking.methods import constant_hook
from saescope.control.edits import Edit
from saescope.control.exports.export_result import ExportResult
from saescope.control.exports.measuring import Progress, Reader
from saescope.control.exports.settings import ExportSettings
from saescope.control.exports.vectors import vectors
from saescope.control.steer import steered
from saescope.engine.anatomy import read_anatomy
from saescope.engine.config import read_config
from saescope.engine.sae import Sae
from saescope.engine.shards import Shards
from saescope.errors import EditError
from saescope.sources.files import open_files
from saescope.store.atomic import atomic_file, refuse_existing

Vector = npt.NDArray[np.float32]
# llama.cpp's names of architectures, by transformers' model_type; others are mostly the same without punctuation.
ARCHITECTURES: Final[Mapping[str, str]] = {
    "gemma3_text": "gemma3",
    "gpt_neox": "gptneox",
    "mistral": "llama",
    "phi": "phi2",
    "qwen3_5": "qwen35",
    "qwen3_5_moe": "qwen35moe",
    "qwen3_5_moe_text": "qwen35moe",
    "qwen3_5_text": "qwen35",
}
_ALIGNMENT = 32
_UINT32, _STRING, _FLOAT32 = 4, 8, 0
EQUALS = "h + s·d after each edited layer, at every position: the add edits with scope all and skip_sinks = false"


def export_gguf(
    model: str | Path,
    saes: Sequence[Sae],
    edits: Sequence[Edit],
    out: str | Path,
    settings: ExportSettings | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Write `add` edits as a control vector; strengths are in it, so llama.cpp takes it with scale 1.

    Of the `model`, a folder or hub id, the config alone is read, unless the edits are not quite what llama.cpp will do
    and that shall be measured on neutral text (`settings.neutral`). Raises EditError for other ops,
    for layer 0, and for edits that do not fit the model.
    """
    settings = settings or ExportSettings()
    out = Path(out).expanduser()
    refuse_existing(out)
    files = open_files(str(model), offline=settings.offline)
    config = read_config(files)
    for edit in edits:
        _refuse(edit, int(config.num_hidden_layers))
    layers = _summed(edits, saes, int(config.hidden_size), str(model))
    limits = tuple(dict.fromkeys(filter(None, map(_limit, edits))))
    measured: dict[str, Any] = {"layers": sorted(layers)}
    if limits and settings.measure:
        shards, anatomy = Shards.open(files), read_anatomy(files)
        measured |= _measure(Reader(shards, anatomy, settings, progress), layers, edits, saes)
    with atomic_file(out) as path:
        path.write_bytes(control_vector(layers, architecture(str(config.model_type))))
    return ExportResult("gguf", out, (out,), not limits, EQUALS, limits, measured)


def _summed(
    edits: Sequence[Edit], saes: Sequence[Sae], d_model: int, model: str
) -> dict[int, Vector]:
    """What each layer's edits add, together; raises EditError where that does not fit the model, or float32."""
    layers = {
        layer: sum(edit.amount * d.double() for edit, d in zip(of, rows, strict=True))
        .float()
        .numpy()
        for layer, (of, rows) in vectors(edits, saes).items()
    }
    for layer, vector in layers.items():
        if len(vector) != d_model:
            raise EditError(
                f"the edits of layer {layer} are {len(vector)} wide, {model} has {d_model}"
            )
        if not np.isfinite(vector).all():
            raise EditError(f"the edits of layer {layer} add up to more than float32 holds")
    return layers


def _measure(
    reader: Reader, layers: Mapping[int, Vector], edits: Sequence[Edit], saes: Sequence[Sae]
) -> dict[str, Any]:
    """How far the control vector is from the edits as they are steered, and from the model without them."""
    hook = constant_hook({layer: torch.from_numpy(vector) for layer, vector in layers.items()})
    vector, edited, base = reader.read([hook, steered(reader.lm, saes, edits), None])
    far = {"kl_steered_vector": edited, "kl_base_vector": base}
    return {name: distance(one, vector).to_dict() for name, one in far.items()}


def architecture(model_type: str) -> str:
    """llama.cpp's name of an architecture that transformers calls `model_type`; a hint, which llama.cpp only shows."""
    return ARCHITECTURES.get(model_type, model_type.replace("_", ""))


def control_vector(layers: Mapping[int, Vector], hint: str) -> bytes:
    """A control vector's bytes, from one float32 vector (d_model,) for each layer."""
    values = [
        ("general.architecture", _STRING, _text("controlvector")),
        ("controlvector.model_hint", _STRING, _text(hint)),
        ("controlvector.layer_count", _UINT32, struct.pack("<I", len(layers))),
    ]
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(layers), len(values))
    head += b"".join(_text(key) + struct.pack("<I", kind) + data for key, kind, data in values)
    body = b""
    for layer, vector in sorted(layers.items()):
        head += _text(f"direction.{layer}") + struct.pack(
            "<IQIQ", 1, len(vector), _FLOAT32, len(body)
        )
        body += _padded(vector.astype("<f4").tobytes())
    return _padded(head) + body


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)


def _refuse(edit: Edit, n_layers: int) -> None:
    if edit.op != "add":
        instead = (
            "--format lora takes project away from every write"
            if edit.op == "project"
            else "what depends on the residual needs a hook (steer), or --format lora of a project edit"
        )
        raise EditError(
            f"edit of {edit.name}: a control vector can only add, not {edit.op}; {instead}"
        )
    if edit.layer == 0:
        raise EditError(
            f"edit of {edit.name}: llama.cpp adds no control vector after block 0; take layer 1 or later"
        )
    if edit.layer >= n_layers:
        raise EditError(f"edit of {edit.name}: the model has layers 0-{n_layers - 1}")


def _limit(edit: Edit) -> str | None:
    if edit.scope != "all":
        return f"the edit of {edit.name} is meant for scope {edit.scope}; llama.cpp adds at every position"
    if edit.skip_sinks:
        return "the edits leave position 0 and sinks alone (skip_sinks); llama.cpp adds there too"
    return None
