"""Edits: which features are changed, how, and by how much; read from and written to TOML. Knows no tensors."""

import json
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from saescope.errors import EditError, ResourceError, SourceError
from saescope.sources.catalog import Feature

Op = Literal["add", "scale", "clamp", "readout_clamp", "project"]
Gate = Literal["relu", "topk"]
Scope = Literal["all", "prefill", "decode", "last"]


@dataclass(frozen=True)
class Edit:
    """One change to the residual at a feature's layer.

    `strength` is in units of the feature's activation (a share of it for `scale`; the target for the clamps); `gate`
    says when the feature counts as on, `scope` which positions are edited.
    """

    feature: Feature | str
    op: Op = "scale"
    strength: float | int = -1.0
    gate: Gate = "relu"
    scope: Scope = "all"
    skip_sinks: bool = True

    def __post_init__(self) -> None:
        _check(vars(self))
        if isinstance(self.feature, str):
            object.__setattr__(self, "feature", Feature.parse(self.feature))

    @property
    def at(self) -> Feature:
        """The feature, read where it was given as text."""
        return Feature.parse(self.feature) if isinstance(self.feature, str) else self.feature


def _check(values: Mapping[str, Any]) -> None:
    """Raises EditError for a value that no edit can have."""
    feature = values["feature"]
    for name, allowed in (("op", Op), ("gate", Gate), ("scope", Scope)):
        if name in values and values[name] not in get_args(allowed):
            raise EditError(f"edit of {feature}: {name} {values[name]!r} is not one of {', '.join(get_args(allowed))}")
    strength, skip_sinks = values.get("strength", 0.0), values.get("skip_sinks", True)
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise EditError(f"edit of {feature}: strength {strength!r} is not a number")
    if not math.isfinite(strength):
        raise EditError(f"edit of {feature}: strength {strength} is not finite")
    if not isinstance(skip_sinks, bool):
        raise EditError(f"edit of {feature}: skip_sinks {skip_sinks!r} is not true or false")


@dataclass(frozen=True)
class EditSet:
    """Edits and what they are for: a model, and an SAE of these sizes where they are known."""

    model: str
    sae: str
    edits: tuple[Edit, ...]
    d_model: int | None = None
    d_sae: int | None = None


def write_edits(edits: EditSet, path: Path, comments: Sequence[str] = ()) -> None:
    """Write an edits file whole or not at all; raises ResourceError where it cannot be written."""
    lines = [f"# {''.join(c if c.isprintable() else ' ' for c in line)}" for line in comments]
    lines += [f"{f.name} = {_toml(getattr(edits, f.name))}" for f in fields(edits)
              if f.name != "edits" and getattr(edits, f.name) is not None]  # fmt: skip
    for edit in edits.edits:
        lines += ["", "[[edit]]", *(f"{f.name} = {_toml(getattr(edit, f.name))}" for f in fields(edit))]
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ResourceError(f"cannot write the edits {path}: {error.strerror or error}") from error


def read_edits(path: str | Path) -> EditSet:
    """Read an edits file; raises EditError for anything unreadable, unknown or out of range, naming it."""
    path = Path(path).expanduser()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EditError(f"{path} does not exist: give an edits file, such as detect writes") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EditError(f"{path} is no edits file: {error}") from error
    rows = data.pop("edit", [])
    _check_keys(data, {f.name for f in fields(EditSet)} - {"edits"}, path, "the file")
    for key, kind in (("model", str), ("sae", str), ("d_model", int), ("d_sae", int)):
        if key in data and (not isinstance(data[key], kind) or isinstance(data[key], bool)):
            raise EditError(f"{path}: {key} is {data[key]!r}, not a {'string' if kind is str else 'number'}")
    if missing := {"model", "sae"} - data.keys():
        raise EditError(f"{path} does not say its {min(missing)}: an edit is of one model and one SAE")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise EditError(f"{path} has no [[edit]]")
    try:
        return EditSet(edits=tuple(_edit(row, path, n) for n, row in enumerate(rows, 1)), **data)
    except (EditError, SourceError) as error:
        raise EditError(f"{path}: {error}") from error


def _edit(row: Mapping[str, Any], path: Path, number: int) -> Edit:
    _check_keys(row, {f.name for f in fields(Edit)}, path, f"edit {number}")
    if not isinstance(row.get("feature"), str):
        raise EditError(f"edit {number} names no feature, as 17/23991")
    _check(row)
    return Edit(**row)


def _check_keys(row: Mapping[str, Any], known: set[str], path: Path, where: str) -> None:
    if unknown := row.keys() - known:
        raise EditError(f"{path}: {where} has an unknown key {min(unknown)!r}; known are {', '.join(sorted(known))}")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    # A JSON string without escapes of surrogates is a TOML basic string, but for DEL.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")
