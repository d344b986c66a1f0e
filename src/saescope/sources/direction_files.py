"""Files of directions: the vectors in them, by name, whatever tool wrote them.

| suffix | written by | a vector's layer |
| .safetensors | saescope and others | metadata, or its name |
| .gguf | llama.cpp, repeng, EasySteer: control vectors | `direction.{layer}` |
| .pt, .pth, .bin | torch.save: a vector, or vectors by layer | its key, or `layer` beside it |
| .npz, .npy | numpy.savez, numpy.save | its name |

A layer is a block, counted from 0, whose output the vector is added to. All of these tools count
like that: llama.cpp adds `direction.17` to the output of block 17, which repeng, steering-vectors
and EasySteer call layer 17 as well. (`hidden_states[18]` of transformers, which counts the
embedding.)
"""

import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from saescope.errors import SourceError, first_line
from saescope.sources.archives import check_archive
from saescope.sources.gguf_files import bfloat16_to_float32, read_gguf
from saescope.sources.hook_points import parse_hook_point
from saescope.sources.regular_files import check_regular, open_regular, read_bytes

METADATA_KEY = "saescope_directions"
_MAX_FILE_BYTES = 2**28
_DTYPES: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_NAME_OF_LAYER = re.compile(
    r"direction[._](\d{1,4})(?:\.\d+)?|(?:(?:layers?|block)[._]?)?(\d{1,4})"
)
_CONTROL_VECTOR = "controlvector"
Vector = Callable[[], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class DirectionFile:
    """A file's vectors by name, each decoded when it is called, and the metadata of each."""

    tensors: Mapping[str, Vector]
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_direction_file(path: Path) -> DirectionFile:
    """Read a file of any of the formats; raises SourceError if it is damaged or of another kind."""
    reader = _READERS.get(path.suffix.lower(), _read_safetensors)
    try:
        check_regular(path)
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise SourceError(f"{path} has {size:,} bytes: that is too large for directions")
        return reader(path)
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist: give a file with a direction") from error
    except OSError as error:
        kind = path.suffix[1:] or "safetensors"
        raise SourceError(f"{path} is not a readable {kind} file: {error}") from error


def is_direction_file(text: str) -> bool:
    """Whether this is meant as a file of a direction, perhaps followed by #TENSOR or @LAYER."""
    return any(re.search(rf"{re.escape(suffix)}($|[#@])", text.lower()) for suffix in SUFFIXES)


def layer_in_name(name: str) -> int | None:
    """The layer of a tensor named `direction.LAYER`, `layer_LAYER`, `17` or as a block, or None."""
    if match := _NAME_OF_LAYER.fullmatch(name):
        return int(match[1] or match[2])
    return parse_hook_point(name).layer


def refuse_other_place(name: str) -> None:
    """Raise SourceError for a tensor named as a part of a block, such as its MLP."""
    if layer_in_name(name) is None and re.search(r"\.\d+\.", name):
        raise SourceError(f"{name} is no direction of the residual, a block's output")


def _read_safetensors(path: Path) -> DirectionFile:
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        tensors = dict(deserialize(read_bytes(path, _MAX_FILE_BYTES)))  # type: ignore[no-untyped-call]
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise SourceError(f"{path} is not a readable safetensors file: {error}") from error
    vectors = {name: partial(_decode_safetensors, tensor) for name, tensor in tensors.items()}
    return DirectionFile(vectors, _parse_metadata(path, metadata.get(METADATA_KEY, "{}")))


def _decode_safetensors(tensor: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    dtype, data = tensor["dtype"], tensor["data"]
    if dtype == "BF16":
        return bfloat16_to_float32(data).reshape(tensor["shape"])
    if dtype not in _DTYPES:
        raise _not_floating_point(dtype)
    return _to_float32(np.frombuffer(data, _DTYPES[dtype])).reshape(tensor["shape"])


def _parse_metadata(path: Path, text: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict) or not all(map(_is_metadata, metadata.values())):
        raise SourceError(f"{path} has damaged metadata of its directions")
    return metadata


def _is_metadata(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    layer = value.get("layer")
    if layer is None:
        return True
    return isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0


def _read_gguf(path: Path) -> DirectionFile:
    file = read_gguf(path)
    kind = file.metadata.get("general.architecture")
    if kind != _CONTROL_VECTOR:
        raise SourceError(f"{path} is GGUF of a {kind!r:.40}, not a control vector")
    vectors = {
        name: vector for name, vector in file.tensors.items() if name.startswith("direction.")
    }
    hint = str(file.metadata.get(f"{_CONTROL_VECTOR}.model_hint", "")).strip()
    made = "GGUF control vector"
    if hint and hint.isprintable():
        made += f" of {hint}"
    return DirectionFile(vectors, {name: {"made": made} for name in vectors})


def _read_pickled(path: Path) -> DirectionFile:
    from saescope.sources.pickled_directions import read_pickled

    pickled = read_pickled(path)
    vectors = {name: partial(_to_float32, array) for name, array in pickled.vectors.items()}
    if pickled.layer is None:
        return DirectionFile(vectors)
    return DirectionFile(vectors, {name: {"layer": pickled.layer} for name in vectors})


def _read_numpy(path: Path) -> DirectionFile:
    try:
        with open_regular(path) as file:
            arrays = _load_arrays(path, file)
    except Exception as error:  # NumPy raises whatever a damaged file leads to
        raise SourceError(f"{path} is not a readable NumPy file: {first_line(error)}") from error
    return DirectionFile({name: partial(_to_float32, array) for name, array in arrays.items()})


def _load_arrays(path: Path, file: BinaryIO) -> Mapping[str, npt.NDArray[Any]]:
    if zipfile.is_zipfile(file):
        check_archive(path, limit=_MAX_FILE_BYTES)
    file.seek(0)
    content = np.load(file, allow_pickle=False)
    if isinstance(content, np.ndarray):
        return {"vector": content}
    with content:
        return {name: content[name] for name in content.files}


def _to_float32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if array.dtype.kind != "f":
        raise _not_floating_point(str(array.dtype))
    with np.errstate(over="ignore"):  # becomes infinite, which Direction refuses
        return array.astype(np.float32)


def _not_floating_point(dtype: str) -> SourceError:
    return SourceError(f"a direction of {dtype} is not of floating point numbers")


_READERS: Mapping[str, Callable[[Path], DirectionFile]] = {
    ".safetensors": _read_safetensors,
    ".gguf": _read_gguf,
    ".pt": _read_pickled,
    ".pth": _read_pickled,
    ".bin": _read_pickled,
    ".npz": _read_numpy,
    ".npy": _read_numpy,
}
SUFFIXES = tuple(_READERS)
