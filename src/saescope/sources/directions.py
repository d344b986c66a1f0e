"""Plain directions of the residual, such as a difference of means: in memory, and in safetensors files.

A file is self-contained: its metadata say each direction's name, layer, model and what it was made of. A file of
somebody else's, with one vector or with vectors named `direction.{layer}`, is read as well.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from saescope.errors import SourceError

_MOST_BYTES = 2**30
METADATA_KEY = "saescope_directions"
_DTYPES: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


@final
@dataclass(frozen=True, eq=False)
class Direction:
    """A vector of the residual after `layer`, with the length it is used with.

    `values` (d_model,) are kept as a read-only float32 copy; `model` is what it was found in and `origin` says of what,
    where that is known. Raises SourceError for a vector that is no direction: not 1-D, not finite, or without length.
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
        if (
            self.layer < 0
            or not self.name
            or not (self.name + self.model + self.origin).isprintable()
        ):
            raise SourceError(
                f"direction {self.name!r} of layer {self.layer}: it needs a name in one line and a layer"
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
        """Its length."""
        return float(np.linalg.norm(self.values.astype(np.float64)))


def read_direction(
    path: str | Path, tensor: str | None = None, layer: int | None = None
) -> Direction:
    """The direction of a safetensors file: the tensor named, or that of this layer, or the only one there is.

    Raises SourceError for a file that is none, has no such direction, or does not say which layer it is of.
    """
    path = Path(path).expanduser()
    tensors, about = _read(path)
    name = tensor or _choose(path, list(tensors), layer)
    if name not in tensors:
        raise SourceError(f"{path} has no tensor {name!r}: it has {_listed(tensors)}")
    known = about.get(name, {})
    of = known.get("layer", _layer_named(name))
    if layer is not None and of is not None and of != layer:
        raise SourceError(f"{path}: {name} is a direction of layer {of}, not {layer}")
    if (at := layer if of is None else of) is None:
        raise SourceError(
            f"{path}: {name} does not say its layer: add it, as {path.name}@17 or layer = 17"
        )
    fields = {"name": "name", "model": "model", "made": "origin"}
    texts = {fields[key]: known[key] for key in fields if isinstance(known.get(key), str)}
    try:
        return Direction(at, _values(tensors[name]), **{"name": path.stem, **texts})
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from error


def parse_direction_ref(text: str) -> tuple[str, str | None, int | None]:
    """`FILE#TENSOR@LAYER` as file, tensor and layer, the last two where they are given."""
    place, at, layer = text.rpartition("@")
    if not at or not layer.isdecimal():
        place, layer = text, ""
    file, _, tensor = (
        place.partition("#") if not Path(place).expanduser().is_file() else (place, "", "")
    )
    return file, tensor or None, int(layer) if layer else None


def _read(path: Path) -> tuple[dict[str, Mapping[str, Any]], dict[str, Any]]:
    """A file's tensors as safetensors gives them, and what its metadata say of each."""
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise SourceError(f"{path} has {size:,} bytes: that is no file of directions")
        tensors = dict(deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError as error:
        raise SourceError(
            f"{path} does not exist: give a safetensors file with a direction"
        ) from error
    except (OSError, SafetensorError) as error:
        raise SourceError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        about = json.loads(metadata.get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or not all(
        isinstance(one, dict) and _is_layer(one) for one in about.values()
    ):
        raise SourceError(f"{path} has damaged metadata of its directions")
    return tensors, about


def _is_layer(about: Mapping[str, Any]) -> bool:
    layer = about.get("layer")
    return layer is None or (isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0)


def _choose(path: Path, names: Sequence[str], layer: int | None) -> str:
    if len(names) == 1:
        return names[0]
    of_layer = [name for name in names if layer is not None and _layer_named(name) == layer]
    if len(of_layer) == 1:
        return of_layer[0]
    raise SourceError(f"{path} has {len(names)} tensors, say which: {path.name}#{names[0] if names else 'NAME'}; "
                      f"it has {_listed(names)}")  # fmt: skip


def _layer_named(name: str) -> int | None:
    head, *rest = name.split(".")
    return int(rest[0]) if head == "direction" and rest and rest[0].isdecimal() else None


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    shown = sorted(names)[:5]
    return ", ".join(shown) + (", …" if len(names) > 5 else "") or "none"


def _values(tensor: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    dtype, data = tensor["dtype"], tensor["data"]
    if dtype == "BF16":  # the upper half of a float32
        flat = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif dtype in _DTYPES:
        with np.errstate(over="ignore"):  # infinite then, and refused as such
            flat = np.frombuffer(data, _DTYPES[dtype]).astype(np.float32)
    else:
        raise SourceError(f"a direction of {dtype} is not of floating point numbers")
    return flat.reshape(tensor["shape"])
