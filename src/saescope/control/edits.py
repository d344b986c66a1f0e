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
_USUAL: Mapping[str, float] = {"scale": -1.0, "clamp": 0.0, "readout_clamp": 0.0, "project": 1.0}


@dataclass(frozen=True)
class Edit:
    """One change to the residual at a feature's layer.

    `strength` is in units of the feature's activation for `add`, a share of it for `scale` (-1 when left out), the
    target for the clamps (0), the share of the component for `project` (1). `gate` says when the feature counts as on;
    `scope` which positions are edited: all, those of the prompt (prefill), those generated (decode), or the last of
    each pass, which is what the next token is predicted from.
    """

    feature: Feature | str
    op: Op = "scale"
    strength: float | int | None = None
    gate: Gate = "relu"
    scope: Scope = "all"
    skip_sinks: bool = True

    def __post_init__(self) -> None:
        _check(vars(self))
        if isinstance(self.feature, str):
            object.__setattr__(self, "feature", Feature.parse(self.feature))

    @property
    def amount(self) -> float:
        """The strength, or what the op means without one."""
        return float(_USUAL[self.op] if self.strength is None else self.strength)

    @property
    def changes_nothing(self) -> bool:
        """Whether the edit is none at all."""
        return self.amount == 0 and self.op in ("add", "scale", "project")

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
    op, strength, skip_sinks = values.get("op", "scale"), values.get("strength"), values.get("skip_sinks", True)
    if strength is None:
        if op not in _USUAL:
            raise EditError(f"edit of {feature}: {op} needs a strength")
        strength = _USUAL[op]
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise EditError(f"edit of {feature}: strength {strength!r} is not a number")
    if not math.isfinite(strength):
        raise EditError(f"edit of {feature}: strength {strength} is not finite")
    if op == "project" and not 0 <= strength <= 1:
        raise EditError(f"edit of {feature}: project removes a share between 0 and 1 of the component, not {strength}")
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
        lines += ["", "[[edit]]", *(f"{f.name} = {_toml(_value(edit, f.name))}" for f in fields(edit))]
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ResourceError(f"cannot write the edits {path}: {error.strerror or error}") from error


def parse_edit(text: str) -> Edit:
    """An edit in words, `17/23991 scale -1 relu all`, the last ones left out at will; raises EditError otherwise."""
    words = text.split()
    if not 1 <= len(words) <= 5:
        raise EditError(f"edit {text!r} is not FEATURE OP STRENGTH GATE SCOPE, as 17/23991 scale -1")
    values: dict[str, Any] = dict(zip(("feature", "op", "strength", "gate", "scope"), words, strict=False))
    try:
        values["feature"] = Feature.parse(words[0])
        if "strength" in values:
            values["strength"] = float(values["strength"])
    except (SourceError, ValueError) as error:
        raise EditError(f"edit {text!r}: {error}") from error
    _check(values)
    return Edit(**values)


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


def _value(edit: Edit, name: str) -> Any:
    return edit.amount if name == "strength" else getattr(edit, name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    # A JSON string without escapes of surrogates is a TOML basic string, but for DEL.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")
