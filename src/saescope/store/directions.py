"""Write directions of the residual to a safetensors file; `sources/directions.py` reads it."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from saescope.sources.direction_files import METADATA_KEY
from saescope.sources.directions import Direction
from saescope.store.atomic import replace_file


def write_directions(directions: Sequence[Direction], path: Path) -> list[str]:
    """Write a safetensors file whole or not at all; returns the tensors' names in order.

    Raises ResourceError if the file cannot be written.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import saescope as ss
    >>> direction = ss.Direction(2, np.array([0.6, 0.8]), name="japanese")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "japanese.safetensors"
    ...     ss.write_directions([direction], path)
    ...     ss.read_direction(path).name
    ['direction.2']
    'japanese'
    """
    content, names = directions_file(directions)
    replace_file(path, content)
    return names


def directions_file(directions: Sequence[Direction]) -> tuple[bytes, list[str]]:
    """Return the content of a file of directions, and the tensors' names in order."""
    from safetensors.numpy import save

    names = _tensor_names(directions)
    named = dict(zip(names, directions, strict=True))
    about = {name: _metadata(direction) for name, direction in named.items()}
    tensors = {name: direction.values for name, direction in named.items()}
    return save(tensors, {METADATA_KEY: json.dumps(about, ensure_ascii=False)}), names


def _metadata(direction: Direction) -> dict[str, str | int]:
    return {
        "name": direction.name,
        "layer": direction.layer,
        "model": direction.model,
        "made": direction.origin,
    }


def _tensor_names(directions: Sequence[Direction]) -> list[str]:
    """Return `direction.LAYER` per direction, with a number appended if a layer has several."""
    per_layer = Counter(direction.layer for direction in directions)
    seen: Counter[int] = Counter()
    names = []
    for direction in directions:
        layer = direction.layer
        name = f"direction.{layer}"
        if per_layer[layer] > 1:
            name += f".{seen[layer]}"
        seen[layer] += 1
        names.append(name)
    return names
