"""Edits files: TOML with the model, the SAE, and an [[edit]] table per edit. No torch."""

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

from saescope.control.about import About
from saescope.control.edits import Edit, EditSet, edit_from_values
from saescope.control.means_file import mean_row, means_content, means_of, read_means
from saescope.errors import EditError, SourceError
from saescope.sources.directions import Direction, parse_direction_ref, read_direction
from saescope.sources.locks import one_writer
from saescope.sources.mistaken import refuse_folder
from saescope.sources.neutral_mean import NeutralMean
from saescope.sources.regular_files import read_text
from saescope.store.atomic import replace_file
from saescope.store.directions import directions_file

_HEADER_TYPES = {"model": str, "sae": str, "d_model": int, "d_sae": int, "k": int}
_HEADER_KEYS = {field.name for field in fields(EditSet)} - {"edits"}
_EDIT_KEYS = {field.name for field in fields(Edit)} | {"layer"}
_MEAN = "mean"  # the table of mean residuals by layer


def read_edits(path: str | Path) -> EditSet:
    """Read an edits file.

    Raises EditError, naming the file and the value, for anything unreadable, unknown or out of
    range.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import saescope as ss
    >>> edits = ss.EditSet("saescope-tiny", "saescope-tiny-sae", (ss.Edit("2/412", "scale", -2.0),))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ss.write_edits(edits, Path(folder) / "edits.toml")
    ...     ss.read_edits(Path(folder) / "edits.toml") == edits
    True
    """
    path = Path(path).expanduser()
    header = _load_toml(path)
    rows, mean_tables = header.pop("edit", []), header.pop(_MEAN, {})
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        rows = []
    _check_header(path, header)
    required = ["model", "sae"]
    if rows and all("feature" not in row for row in rows):
        required = ["model"]
    for key in required:
        if key not in header:
            raise EditError(f"{path} has no {key}: edits belong to one model and one SAE")
    if not rows:
        raise EditError(f"{path} has no [[edit]]")
    try:
        means = read_means(path, mean_tables)
        edits = tuple(_read_edit(row, path, number, means) for number, row in enumerate(rows, 1))
    except (EditError, SourceError) as error:
        text = str(error)
        raise EditError(text if text.startswith(str(path)) else f"{path}: {text}") from error
    return EditSet(**{"sae": "", **header}, edits=edits)


def write_edits(edits: EditSet, path: Path, comments: Sequence[str] = ()) -> None:
    """Write an edits file, whole or not at all.

    Directions go into `NAME.directions.safetensors` beside it, means that edits act about into
    `NAME.means.safetensors`; if that file holds others, into `NAME.directions-HASH.safetensors`.
    `comments` are the first lines. Raises ResourceError if a file cannot be written, and EditError
    if edits of one layer carry different means.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import saescope as ss
    >>> edits = ss.EditSet("saescope-tiny", "saescope-tiny-sae", (ss.Edit("2/5"),))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ss.write_edits(edits, Path(folder) / "edits.toml", ["chosen by hand"])
    ...     (Path(folder) / "edits.toml").read_text().splitlines()[:2]
    ['# chosen by hand', 'model = "saescope-tiny"']
    """
    means = means_of(edits.edits)
    with one_writer(path):  # the file and its vectors belong together
        places = _write_directions(edits, path)
        lines = [f"# {_printable(line)}" for line in comments]
        lines += _header_lines(edits)
        for edit in edits.edits:
            row = _edit_row(edit, places)
            lines += ["", "[[edit]]", *_toml_lines(row)]
        if means:
            file = _write_beside(path, "means", means_content(means))
            for layer, mean in means.items():
                lines += ["", f"[{_MEAN}.{layer}]", *_toml_lines(mean_row(mean, file))]
        replace_file(path, "\n".join(lines) + "\n")


def _load_toml(path: Path) -> dict[str, Any]:
    refuse_folder(path, EditError, "an edits file, such as detect writes")
    try:
        return tomllib.loads(read_text(path))
    except FileNotFoundError as error:
        raise EditError(
            f"{path} does not exist: give an edits file, such as detect writes"
        ) from error
    except RecursionError as error:
        raise EditError(f"{path} is no edits file: it is nested too deeply") from error
    except (OSError, ValueError) as error:  # also numbers with more digits than Python reads
        raise EditError(f"{path} is no edits file: {error}") from error


def _check_header(path: Path, header: Mapping[str, Any]) -> None:
    _check_keys(f"{path}: the file", header, _HEADER_KEYS)
    for key, expected in _HEADER_TYPES.items():
        value = header.get(key, expected())
        if not isinstance(value, expected) or isinstance(value, bool):
            type_name = {str: "string", int: "number"}[expected]
            raise EditError(f"{path}: {key} is {value!r}, not a {type_name}")
    files = header.get("sae_files", {})
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        raise EditError(
            f"{path}: sae_files is not a table of fingerprints by layer, "
            'such as { "17" = "sha256:…" }'
        )


def _read_edit(
    row: Mapping[str, Any], path: Path, number: int, means: Mapping[int, NeutralMean]
) -> Edit:
    _check_keys(f"edit {number}", row, _EDIT_KEYS)
    if ("feature" in row) == ("direction" in row):
        raise EditError(f"edit {number}: pass either a feature (such as 17/23991) or a direction")
    values = dict(row)
    layer = values.pop("layer", None)
    if not isinstance(row.get("feature", row.get("direction")), str):
        raise EditError(
            f'edit {number}: its feature or direction is not a string such as "17/23991"'
        )
    if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int)):
        raise EditError(f"edit {number}: layer {layer!r} is not a number")
    if "direction" in row:
        place = path.parent / Path(row["direction"]).expanduser()
        file, tensor, _ = parse_direction_ref(str(place))
        values["direction"] = read_direction(file, tensor, layer)
    elif layer is not None:
        raise EditError(f"edit {number}: a feature says its layer itself; remove layer")
    about = values.pop("about", "zero")
    if about not in get_args(About):
        raise EditError(f"edit {number}: about {about!r:.40} is not mean or zero")
    edit = edit_from_values(values)
    if about == "zero":
        return edit
    if edit.layer not in means:
        raise EditError(
            f'edit {number}: about = "mean" needs a table [mean.{edit.layer}]: leave it out of the '
            "file, and pass about='mean' to have the mean measured"
        )
    return replace(edit, about=means[edit.layer])


def _check_keys(where: str, row: Mapping[str, Any], known: set[str]) -> None:
    unknown = row.keys() - known
    if unknown:
        raise EditError(
            f"{where} has an unknown key {min(unknown)!r}; known are {', '.join(sorted(known))}"
        )


def _write_directions(edits: EditSet, path: Path) -> dict[Direction, str]:
    """Write the directions beside the edits file: FILE#TENSOR of each."""
    directions = [edit.direction for edit in edits.edits if edit.direction is not None]
    unique = list(dict.fromkeys(directions))
    if not unique:
        return {}
    content, tensors = directions_file(unique)
    file = _write_beside(path, "directions", content)
    return {
        direction: f"{file}#{tensor}" for direction, tensor in zip(unique, tensors, strict=True)
    }


def _write_beside(path: Path, kind: str, content: bytes) -> str:
    """Write a file of vectors beside the edits file, and return its name."""
    file = path.with_name(f"{path.stem}.{kind}.safetensors")
    if file.exists() and file.read_bytes() != content:
        # The edits file that is there needs its own vectors until the new one is in its place.
        digest = hashlib.sha256(content).hexdigest()[:8]
        file = path.with_name(f"{path.stem}.{kind}-{digest}.safetensors")
    replace_file(file, content)
    return file.name


def _header_lines(edits: EditSet) -> Iterator[str]:
    for field in fields(EditSet):
        value = getattr(edits, field.name)
        if field.name != "edits" and value not in (None, "", {}):
            yield f"{field.name} = {_toml(value)}"


def _edit_row(edit: Edit, places: Mapping[Direction, str]) -> dict[str, Any]:
    """One edit as the keys of an edits file."""
    row: dict[str, Any] = {}
    if edit.direction is None:
        row["feature"] = edit.name
    else:
        row |= {"direction": places[edit.direction], "layer": edit.layer}
    row |= {
        "op": edit.op,
        "strength": edit.amount,
        "gate": edit.gate,
        "scope": edit.scope,
        "skip_sinks": edit.skip_sinks,
    }
    if edit.about is not None or edit.op == "project":
        row["about"] = "zero" if edit.about is None else "mean"
    if edit.condition is not None:
        row["when"] = str(edit.condition)
    return row


def _toml_lines(row: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in row.items()]


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() else " " for char in line)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        items = [f"{_toml(key)} = {_toml(item)}" for key, item in value.items()]
        return "{ " + ", ".join(items) + " }"
    # A JSON string without escapes of surrogates is a TOML basic string, except for DEL.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")
