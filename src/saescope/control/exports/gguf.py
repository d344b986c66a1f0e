"""`add` edits as a control vector in GGUF, the format of llama.cpp's --control-vector.

llama.cpp adds the tensor `direction.{L}` to the output of block L at every position: `build_cvec`
comes after the block's last addition, so this is saescope's resid_post of layer L. It adds nothing
after block 0. The file is a header, three values and a few vectors, so it is written here without a
library; the tests read it with the `gguf` package.

Format: github.com/ggml-org/ggml, docs/gguf.md, version 3.
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from saescope.control.baking.constants import constant_intervention, summed_constants
from saescope.control.baking.distance import distance
from saescope.control.baking.eligibility import edit_vectors
from saescope.control.edits import Edit
from saescope.control.exports.export_result import ExportResult
from saescope.control.exports.measuring import OutputRecorder, Progress, State
from saescope.control.exports.settings import ExportSettings
from saescope.control.measured_text import Measuring, extent
from saescope.control.steer import steered
from saescope.engine.anatomy import read_anatomy
from saescope.engine.config import read_config
from saescope.engine.sae import Sae
from saescope.engine.shards import Shards
from saescope.errors import EditError
from saescope.sources.files import open_files
from saescope.store.atomic import atomic_file, refuse_existing

EQUALS = "h + s·d after each edited layer, at every position (scope all, skip_sinks = false)"
# llama.cpp's architecture names by transformers' model_type, where more than punctuation differs.
ARCHITECTURES: Final[Mapping[str, str]] = {
    "cohere": "command-r",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "ernie4_5": "ernie4_5",
    "ernie4_5_moe": "ernie4_5-moe",
    "exaone_moe": "exaone-moe",
    "falcon_h1": "falcon-h1",
    "gemma3_text": "gemma3",
    "gemma3n_text": "gemma3n",
    "gemma4_text": "gemma4",
    "glm4_moe_lite": "deepseek2",
    "glm4v_text": "glm4",
    "gpt_bigcode": "starcoder",
    "gpt_neox": "gptneox",
    "gpt_oss": "gpt-oss",
    "granitemoehybrid": "granitehybrid",
    "hunyuan_v1_dense": "hunyuan-dense",
    "hunyuan_v1_moe": "hunyuan-moe",
    "kimi_linear": "kimi-linear",
    "llama4_text": "llama4",
    "minimax_m2": "minimax-m2",
    "ministral3": "mistral3",
    "mistral": "llama",
    "mixtral": "llama",
    "nemotron_h": "nemotron_h",
    "olmo3": "olmo2",
    "phi": "phi2",
    "qwen2_5_vl_text": "qwen2vl",
    "qwen2_vl_text": "qwen2vl",
    "qwen3_5": "qwen35",
    "qwen3_5_moe": "qwen35moe",
    "qwen3_5_moe_text": "qwen35moe",
    "qwen3_5_text": "qwen35",
    "qwen3_vl_moe_text": "qwen3vlmoe",
    "qwen3_vl_text": "qwen3vl",
    "seed_oss": "seed_oss",
}
_VERSION = 3
_ALIGNMENT = 32
# Numbers of types in GGUF: of a value, and of a tensor.
_UINT32, _STRING, _FLOAT32_TENSOR = 4, 8, 0
Vector = npt.NDArray[np.float32]


def export_gguf(
    model: str | Path,
    saes: Sequence[Sae],
    edits: Sequence[Edit],
    out: str | Path,
    settings: ExportSettings | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Write `add` edits as a control vector for llama.cpp, to be loaded with scale 1.

    Only the model's config is read, unless an edit has a scope or leaves sinks alone, which
    llama.cpp cannot do. Then the result is not exact, and `measured` holds the KL per token in nats
    from the steered model and from the base model to the model with the control vector.

    Raises EditError for other ops, for layer 0, and for edits that do not fit the model;
    ResourceError if `out` exists.

    >>> import tempfile
    >>> import saescope as ss
    >>> sae = ss.load_sae("saescope-tiny-sae", 2)
    >>> edit = ss.Edit("2/5", "add", 3.0, skip_sinks=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = ss.exports.gguf("saescope-tiny", [sae], [edit], f"{folder}/steer.gguf")
    >>> result.exact, result.measured
    (True, {'layers': [2]})
    """
    settings = settings or ExportSettings()
    settings.check()
    out = Path(out).expanduser()
    refuse_existing(out)
    files = open_files(str(model), offline=settings.offline)
    config = read_config(files).text
    _check(edits, config.num_hidden_layers)
    bound = edit_vectors(edits, saes, n_layers=config.num_hidden_layers, d_model=config.hidden_size)
    vectors = _float32(summed_constants(bound))
    limits = _limits(edits)
    measured: dict[str, Any] = {"layers": sorted(vectors)}
    measuring = Measuring()

    def measure() -> dict[str, Any]:
        recorder = OutputRecorder(Shards.open(files), read_anatomy(files), settings)
        return _measure(recorder, vectors, saes, edits, progress)

    with atomic_file(out) as path:
        path.write_bytes(control_vector(vectors, architecture(config.model_type)))
        if limits and extent(settings.measure) != "none":
            measured |= measuring.run(measure) or {}
    measuring.end(out)
    return ExportResult("gguf", out, (out,), not limits, EQUALS, limits, measured)


def control_vector(vectors: Mapping[int, Vector], model_hint: str) -> bytes:
    """Return a control vector's bytes, from one float32 vector (d_model,) per layer."""
    metadata = [
        _text("general.architecture") + _string_value("controlvector"),
        _text("controlvector.model_hint") + _string_value(model_hint),
        _text("controlvector.layer_count") + struct.pack("<II", _UINT32, len(vectors)),
    ]
    tensor_infos = []
    data = b""
    for layer, vector in sorted(vectors.items()):
        n_dimensions, offset = 1, len(data)
        info = struct.pack("<IQIQ", n_dimensions, len(vector), _FLOAT32_TENSOR, offset)
        tensor_infos.append(_text(f"direction.{layer}") + info)
        data += _padded(vector.astype("<f4").tobytes())
    counts = struct.pack("<4sIQQ", b"GGUF", _VERSION, len(tensor_infos), len(metadata))
    header = b"".join([counts, *metadata, *tensor_infos])
    return _padded(header) + data


def architecture(model_type: str) -> str:
    """Return llama.cpp's name of an architecture; llama.cpp only displays it."""
    return ARCHITECTURES.get(model_type, model_type.replace("_", ""))


def _check(edits: Sequence[Edit], n_layers: int) -> None:
    if not edits:
        raise EditError("there are no edits to export")
    for edit in edits:
        if edit.op == "project":
            raise EditError(
                f"edit of {edit.name}: a control vector takes add edits, a LoRA project"
            )
        if edit.op != "add":
            raise EditError(
                f"edit of {edit.name}: a control vector takes add edits, not {edit.op}: "
                "steer it at run time, or export its direction as a project edit to a LoRA"
            )
        if edit.layer == 0:
            raise EditError(
                f"edit of {edit.name}: llama.cpp adds nothing after block 0: use layer 1 or later"
            )


def _float32(constants: Mapping[int, torch.Tensor]) -> dict[int, Vector]:
    vectors = {layer: constant.float().numpy() for layer, constant in constants.items()}
    for layer, vector in vectors.items():
        if not np.isfinite(vector).all():
            raise EditError(f"the edits of layer {layer} add up to more than float32 holds")
    return vectors


def _limits(edits: Sequence[Edit]) -> tuple[str, ...]:
    """Say in what the edits differ from what llama.cpp does."""
    limits = []
    for edit in edits:
        if edit.scope != "all":
            limits.append(
                f"the edit of {edit.name} has scope {edit.scope}; llama.cpp adds at every position"
            )
        elif edit.skip_sinks:
            limits.append("the edits skip position 0 and sinks (skip_sinks); llama.cpp does not")
    return tuple(dict.fromkeys(limits))


def _measure(
    recorder: OutputRecorder,
    vectors: Mapping[int, Vector],
    saes: Sequence[Sae],
    edits: Sequence[Edit],
    progress: Progress | None,
) -> dict[str, Any]:
    """Measure the KL from the steered model and from the base model to the control vector."""
    intervention = constant_intervention(
        {layer: torch.from_numpy(v) for layer, v in vectors.items()}
    )
    states: list[State] = [intervention, steered(recorder.lm, saes, edits), None]
    with_vector, with_edits, base = recorder.record(states, progress)
    return {
        "kl_steered_vector": distance(with_edits, with_vector).to_dict(),
        "kl_base_vector": distance(base, with_vector).to_dict(),
    }


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _string_value(text: str) -> bytes:
    return struct.pack("<I", _STRING) + _text(text)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
