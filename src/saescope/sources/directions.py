"""Directions of the residual, such as a difference of means, in memory and in files.

A file of saescope is self-contained: its metadata hold each direction's name, layer, model and
origin. Files of other tools are read too: `direction_files.py`. `store/directions.py` writes files.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt

from saescope.errors import SourceError
from saescope.sources.direction_files import (
    layer_in_name,
    read_direction_file,
    refuse_other_place,
)
from saescope.sources.saes import ranges

_NAMES_LISTED = 5


@final
@dataclass(frozen=True, eq=False, repr=False)
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

    def __repr__(self) -> str:
        values = hashlib.sha256(self.values.tobytes()).hexdigest()[:16]
        of = f"norm {self.norm:.4g}, {len(self.values)} values, sha256 {values}"
        return f"Direction({self.layer}, {self.name!r:.32}, {of})"

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
    """One direction of a file: the named tensor, or that of a layer, or the only one.

    The file is safetensors, a GGUF control vector, or what torch or NumPy saved; a layer is the
    block to whose output the direction belongs. Raises SourceError if the file is damaged, has no
    such direction, or does not say its layer.

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
    file = read_direction_file(path)
    name = tensor or _choose_tensor(path, list(file.tensors), layer)
    if name not in file.tensors:
        raise SourceError(f"{path} has no tensor {name!r}: it has {_list_names(file.tensors)}")
    metadata = file.metadata.get(name, {})
    texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
    try:
        return Direction(
            layer=_resolve_layer(name, metadata, layer),
            values=file.tensors[name](),
            name=texts.get("name", path.stem),
            model=texts.get("model", ""),
            origin=texts.get("made", ""),
        )
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from error


def _resolve_layer(name: str, metadata: Mapping[str, Any], requested: int | None) -> int:
    stored = metadata.get("layer")
    if stored is None:
        refuse_other_place(name)
        stored = layer_in_name(name)
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


def _choose_tensor(path: Path, names: Sequence[str], layer: int | None) -> str:
    if len(names) == 1:
        return names[0]
    layers = [layer_in_name(name) for name in names]
    if layer is not None and layers.count(layer) == 1:
        return names[layers.index(layer)]
    known = sorted({found for found in layers if found is not None})
    if names and len(known) == len(names):  # one direction per layer
        missing = "" if layer is None else f"none of layer {layer}: "
        raise SourceError(
            f"{path} has directions of layers {ranges(known)}, {missing}"
            f"choose one, as {path.name}@{known[len(known) // 2]}"
        )
    example = names[0] if names else "NAME"
    raise SourceError(
        f"{path} has {len(names)} tensors, say which: {path.name}#{example}; "
        f"it has {_list_names(names)}"
    )


def _list_names(names: Sequence[str] | Mapping[str, Any]) -> str:
    listed = sorted(names)[:_NAMES_LISTED]
    if len(names) > _NAMES_LISTED:
        listed.append("…")
    return ", ".join(listed) or "none"
