"""Directions of the residual, such as a difference of means, in memory and in safetensors files.

A file is self-contained: its metadata hold each direction's name, layer, model and origin. Files of
other tools are read too: one vector, or vectors named `direction.{layer}`. `store/directions.py`
writes files.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt

from saescope.errors import SourceError

METADATA_KEY = "saescope_directions"
_MAX_FILE_BYTES = 2**30
_DTYPES: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_NAMES_LISTED = 5


@final
@dataclass(frozen=True, eq=False)
class Direction:
    """A vector of the residual after `layer`; its length is that of the edit it is used for.

    `values` (d_model,) become a read-only float32 copy. `model` names the model it was found in,
    `origin` says how it was found; both are empty if unknown. Raises SourceError for values that
    are not 1-D, not finite, or all zero.

    >>> import numpy as np
    >>> import saescope as ss
    >>> direction = ss.Direction(2, np.array([3.0, 4.0]), name="japanese")
    >>> str(direction), direction.norm
    ('japanese@2', 5.0)
    """

    layer: int
    values: npt.NDArray[Any]
    name: str = "direction"
    model: str = ""
    origin: str = ""

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float32)
        values.flags.writeable = False
        object.__setattr__(self, "values", values)
        one_line = (self.name + self.model + self.origin).isprintable()
        if self.layer < 0 or not self.name or not one_line:
            raise SourceError(
                f"direction {self.name!r} of layer {self.layer}: "
                "it needs a layer, and a name in one line"
            )
        if values.ndim != 1:
            raise SourceError(f"direction {self} has {values.ndim} dimensions, not 1")
        if not np.isfinite(values).all():
            raise SourceError(f"direction {self} has values that are not finite")
        if not self.norm > 0:
            raise SourceError(f"direction {self} is zero everywhere: it points nowhere")

    def __str__(self) -> str:
        return f"{self.name}@{self.layer}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Direction) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[object, ...]:
        return self.layer, self.name, self.model, self.origin, self.values.tobytes()

    @property
    def norm(self) -> float:
        """The vector's Euclidean length, computed in float64."""
        return float(np.linalg.norm(self.values.astype(np.float64)))


def read_direction(
    path: str | Path, tensor: str | None = None, layer: int | None = None
) -> Direction:
    """One direction of a safetensors file: the named tensor, or that of a layer, or the only one.

    Raises SourceError if the file is damaged, has no such direction, or does not say its layer.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import saescope as ss
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "japanese.safetensors")
    ...     _ = ss.write_directions([ss.Direction(2, np.array([3.0, 4.0]), "japanese")], path)
    ...     direction = ss.read_direction(path)
    >>> direction.name, direction.layer, direction.norm
    ('japanese', 2, 5.0)
    """
    path = Path(path).expanduser()
    file = _read_file(path)
    name = tensor or _choose_tensor(path, list(file.tensors), layer)
    if name not in file.tensors:
        raise SourceError(f"{path} has no tensor {name!r}: it has {_list_names(file.tensors)}")
    metadata = file.metadata.get(name, {})
    texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
    try:
        return Direction(
            layer=_resolve_layer(name, metadata, layer),
            values=_values(file.tensors[name]),
            name=texts.get("name", path.stem),
            model=texts.get("model", ""),
            origin=texts.get("made", ""),
        )
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from error


def _resolve_layer(name: str, metadata: Mapping[str, Any], requested: int | None) -> int:
    stored = metadata.get("layer", _layer_in_name(name))
    layer = requested if stored is None else stored
    if layer is None:
        raise SourceError(f"{name} does not say its layer: add it, as FILE@17 or layer = 17")
    if requested is not None and layer != requested:
        raise SourceError(f"{name} is a direction of layer {layer}, not {requested}")
    return int(layer)


class DirectionRef(NamedTuple):
    """A direction's file, and its tensor and layer if they are named."""

    path: str
    tensor: str | None
    layer: int | None


def parse_direction_ref(text: str) -> DirectionRef:
    """Read `FILE`, `FILE#TENSOR`, `FILE@LAYER` or `FILE#TENSOR@LAYER`."""
    layer = None
    place, _, suffix = text.rpartition("@")
    if place and suffix.isdecimal():
        layer, text = int(suffix), place
    if Path(text).expanduser().is_file():  # its name may contain '#'
        return DirectionRef(text, None, layer)
    path, _, tensor = text.partition("#")
    return DirectionRef(path, tensor or None, layer)


@dataclass(frozen=True)
class _DirectionFile:
    """A file's tensors as safetensors gives them, and the metadata of each direction."""

    tensors: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, Mapping[str, Any]]


def _read_file(path: Path) -> _DirectionFile:
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise SourceError(f"{path} has {size:,} bytes: that is too large for directions")
        tensors = dict(deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError as error:
        raise SourceError(
            f"{path} does not exist: give a safetensors file with a direction"
        ) from error
    except (OSError, SafetensorError) as error:
        raise SourceError(f"{path} is not a readable safetensors file: {error}") from error
    return _DirectionFile(tensors, _parse_metadata(path, metadata.get(METADATA_KEY, "{}")))


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


def _choose_tensor(path: Path, names: Sequence[str], layer: int | None) -> str:
    if len(names) == 1:
        return names[0]
    matching = [name for name in names if _layer_in_name(name) == layer]
    if layer is not None and len(matching) == 1:
        return matching[0]
    example = names[0] if names else "NAME"
    raise SourceError(
        f"{path} has {len(names)} tensors, say which: {path.name}#{example}; "
        f"it has {_list_names(names)}"
    )


def _layer_in_name(name: str) -> int | None:
    """The layer of a tensor named `direction.LAYER`, or None."""
    prefix, _, rest = name.partition(".")
    layer = rest.partition(".")[0]
    if prefix != "direction" or not layer.isdecimal():
        return None
    return int(layer)


def _list_names(names: Sequence[str] | Mapping[str, Any]) -> str:
    listed = sorted(names)[:_NAMES_LISTED]
    if len(names) > _NAMES_LISTED:
        listed.append("…")
    return ", ".join(listed) or "none"


def _values(tensor: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    dtype, data = tensor["dtype"], tensor["data"]
    if dtype == "BF16":  # the upper half of a float32
        upper_halves = np.frombuffer(data, "<u2").astype(np.uint32)
        flat = (upper_halves << 16).view(np.float32)
    elif dtype in _DTYPES:
        with np.errstate(over="ignore"):  # becomes infinite, which Direction refuses
            flat = np.frombuffer(data, _DTYPES[dtype]).astype(np.float32)
    else:
        raise SourceError(f"a direction of {dtype} is not of floating point numbers")
    return flat.reshape(tensor["shape"])
