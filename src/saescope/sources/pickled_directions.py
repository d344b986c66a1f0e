"""Directions that torch saved: one vector, vectors by layer, or an object of a steering library.

Code in a file is never run: torch's own unpickler builds plain data only. The vector classes of
repeng, steering-vectors and EasySteer are read as the plain attributes they hold.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from saescope.errors import SourceError, first_line
from saescope.sources.archives import check_archive

_WRAPPERS = ("directions", "layer_activations", "vectors", "steering_vectors", "state_dict")
_LAYER_KEYS = ("layer", "layer_idx", "layer_index")
_MAX_DEPTH = 3
_CLASSES = (
    "repeng.extract.ControlVector",
    "repeng.control.ControlVector",
    "steering_vectors.steering_vector.SteeringVector",
    "easysteer.steer.utils.StatisticalControlVector",
)
_RESIDUAL_SITE = "decoder_block"  # of steering-vectors; its other sites are parts of a block
_FORBIDDEN_CLASS = re.compile(r"GLOBAL ([\w.]+)")


class PickledDirections(NamedTuple):
    """Vectors by name, and the layer that the file gives all of them, if any."""

    vectors: Mapping[str, npt.NDArray[Any]]
    layer: int | None = None


def read_pickled(path: Path) -> PickledDirections:
    """Read a file of `torch.save`; raises SourceError for code, other places and other contents."""
    content = _load(path)
    return _read_content(path, content, depth=0)


class _Attributes:
    """What an object of a steering library holds; takes the place of its class."""


def _load(path: Path) -> Any:
    import torch

    # A class under each name: torch looks the stand-in up by the name in the file.
    stand_ins = [(type(name.rpartition(".")[2], (_Attributes,), {}), name) for name in _CLASSES]

    try:
        if zipfile.is_zipfile(path):
            check_archive(path, stored=True)
        with (
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals([*stand_ins, *_numpy_globals()]),
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        match = _FORBIDDEN_CLASS.search(str(error))
        what = f"it holds a {match[1]}" if match else "it is damaged or holds more than plain data"
        raise SourceError(
            f"{path} is refused: {what} (code in it was not run); save the vectors alone, "
            "as torch.save({layer: vector}, FILE)"
        ) from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {first_line(error)}") from error
    except Exception as error:  # torch's unpickler trusts the structure of a file
        raise SourceError(f"{path} is damaged or truncated: {first_line(error)}") from error


def _numpy_globals() -> list[Any]:
    """What NumPy arrays of floating-point numbers need, under the names of NumPy 1 and 2."""
    from numpy._core.multiarray import _reconstruct

    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    dtypes = [type(np.dtype(name)) for name in ("float16", "float32", "float64")]
    return [*((_reconstruct, name) for name in names), np.ndarray, np.dtype, *dtypes]


def _read_content(path: Path, content: Any, depth: int) -> PickledDirections:
    if isinstance(content, _Attributes):
        content = vars(content)
    vector = _vector(path, content)
    if vector is not None:
        return PickledDirections({"vector": vector})
    if not isinstance(content, dict) or depth > _MAX_DEPTH:
        kind = type(content).__name__
        raise SourceError(
            f"{path} holds a {kind}: save one vector, or vectors by layer as {{layer: vector}}"
        )
    site = content.get("layer_type", _RESIDUAL_SITE)
    if site != _RESIDUAL_SITE:
        raise SourceError(
            f"{path} holds directions of {site!r:.40}: only those of a block's output "
            f"({_RESIDUAL_SITE}) are directions of the residual"
        )
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            return _read_content(path, content[wrapper], depth + 1)
    vectors = {
        str(key): vector
        for key, value in content.items()
        if (vector := _vector(path, value)) is not None
    }
    if not vectors:
        stored = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise SourceError(f"{path} holds no vectors: it has {stored}")
    layers = [content[key] for key in _LAYER_KEYS if _is_layer(content.get(key))]
    return PickledDirections(vectors, layers[0] if layers else None)


def _is_layer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _vector(path: Path, value: Any) -> npt.NDArray[Any] | None:
    """A tensor or array as an array, without leading dimensions of size 1; None for the rest."""
    import torch

    from saescope.sources.formats.containers import check_held

    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            return None
        check_held(path, "a vector", value)
        value = value.detach()
        if value.dtype is torch.bfloat16:
            value = value.float()
        value = value.numpy()
    if not isinstance(value, np.ndarray) or value.ndim == 0:
        return None
    return value.reshape(-1) if value.size == value.shape[-1] else value
