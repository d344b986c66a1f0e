"""Mean residuals in an edits file: a table `[mean.LAYER]` each, and their values beside it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saescope.control.edits import Edit
from saescope.errors import EditError
from saescope.sources.direction_files import read_direction_file
from saescope.sources.neutral_mean import NeutralMean

_LAYER = re.compile(r"[0-9]{1,4}")
_NUMBERS = {"spread": (int, float), "positions": (int,)}
_KEYS = {"values", "source", *_NUMBERS}


def read_means(path: Path, tables: Any) -> dict[int, NeutralMean]:
    """Return the mean residuals of an edits file by layer, from its table `mean`.

    Raises EditError for a table that is not one of them, and SourceError for values that cannot be
    read.
    """
    if not isinstance(tables, Mapping) or not all(map(_LAYER.fullmatch, tables)):
        raise EditError(f"{path}: mean has a table for each layer, such as [mean.17]")
    return {int(layer): _read_mean(path, int(layer), row) for layer, row in tables.items()}


def _read_mean(path: Path, layer: int, row: Any) -> NeutralMean:
    where = f"{path}: mean.{layer}"
    if not isinstance(row, Mapping) or row.keys() != _KEYS:
        raise EditError(f"{where} is not a table of {', '.join(sorted(_KEYS))}")
    for key, types in _NUMBERS.items():
        if not isinstance(row[key], types) or isinstance(row[key], bool):
            raise EditError(f"{where}: {key} is {row[key]!r}, not a number")
    if not isinstance(row["source"], str) or not isinstance(row["values"], str):
        raise EditError(f"{where}: values and source must be strings")
    name, _, tensor = row["values"].rpartition("#")
    file = path.parent / Path(name).expanduser()
    stored = read_direction_file(file).tensors
    if tensor not in stored:
        raise EditError(f"{where}: {file} has no tensor {tensor}")
    return NeutralMean(
        layer, stored[tensor](), float(row["spread"]), row["positions"], row["source"]
    )


def means_of(edits: Sequence[Edit]) -> dict[int, NeutralMean]:
    """Return the mean residuals that edits carry, by layer; EditError if those of one differ."""
    means: dict[int, NeutralMean] = {}
    for edit in edits:
        if edit.about is not None and means.setdefault(edit.layer, edit.about) != edit.about:
            raise EditError(
                f"edit of {edit.name}: edits of layer {edit.layer} carry different means: "
                "a file holds one per layer"
            )
    return dict(sorted(means.items()))


def means_content(means: Mapping[int, NeutralMean]) -> bytes:
    """Return the content of the file with the values, a tensor `mean.LAYER` each."""
    from safetensors.numpy import save

    return save({f"mean.{layer}": mean.values for layer, mean in means.items()})


def mean_row(mean: NeutralMean, file: str) -> dict[str, Any]:
    """Return one mean as the keys of its table."""
    return {
        "values": f"{file}#mean.{mean.layer}",
        "spread": mean.spread,
        "positions": mean.positions,
        "source": mean.source,
    }
