"""Edits: which features or directions are changed, how, and by how much; read from and written to TOML. No torch."""

import json
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from saescope.errors import EditError, SourceError
from saescope.sources.catalog import Feature, SaeSpec
from saescope.sources.directions import Direction, parse_direction_ref, read_direction
from saescope.store.atomic import replace_file
from saescope.store.directions import write_directions

Op = Literal["add", "scale", "clamp", "readout_clamp", "project"]
Gate = Literal["relu", "topk"]
Scope = Literal["all", "prefill", "decode", "last"]
DIRECTION_OPS: tuple[Op, ...] = ("add", "project", "readout_clamp")
_MOST = 3.4e38
_USUAL: Mapping[str, float] = {"scale": -1.0, "clamp": 0.0, "readout_clamp": 0.0, "project": 1.0}


@dataclass(frozen=True)
class Condition:
    """Where an edit may act: on positions on which another feature's activation is above `above` (0: it fires)."""

    feature: Feature
    above: float = 0.0

    def __str__(self) -> str:
        return f"{self.feature} > {self.above!r}" if self.above else str(self.feature)

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Read `17/555` or `17/555 > 2.5`; raises EditError for anything else."""
        feature, sign, above = text.partition(">")
        try:
            one = cls(Feature.parse(feature), float(above) if sign else 0.0)
        except (SourceError, ValueError) as error:
            raise EditError(
                f"condition {text!r} is not a feature, as 17/555, or 17/555 > 2.5"
            ) from error
        if not 0 <= one.above < _MOST:
            raise EditError(
                f"condition {text!r}: an activation is not above {one.above}: give a number from 0 on"
            )
        return one


@dataclass(frozen=True)
class Edit:
    """One change to the residual, along a feature's decoder column or along a plain direction: one of the two is given.

    `strength` is in units of the feature's activation (of the direction as stored) for `add`, a share of the activation
    for `scale` (-1 when left out), the target for the clamps (0; of a direction, its component in the residual), the
    share of the component for `project` (1). `gate` says when a feature counts as on; `scope` which positions are
    edited: all, those of the prompt (prefill), those generated (decode), or the last of each pass, which is what the
    next token is predicted from. `when` restricts it to positions on which another feature of this layer or an earlier
    one fires. Raises EditError for an edit that cannot be.
    """

    feature: Feature | str | None = None
    op: Op = "scale"
    strength: float | int | None = None
    gate: Gate = "relu"
    scope: Scope = "all"
    skip_sinks: bool = True
    direction: Direction | None = None
    when: Condition | str | None = None

    def __post_init__(self) -> None:
        if (self.feature is None) == (self.direction is None):
            raise EditError(
                "an edit is of a feature, as 17/23991, or of a direction: give one of the two"
            )
        if isinstance(self.feature, str):
            object.__setattr__(self, "feature", Feature.parse(self.feature))
        if isinstance(self.when, str):
            object.__setattr__(self, "when", Condition.parse(self.when))
        _check(self.name, vars(self))
        if (condition := self.condition) is not None and condition.feature.layer > self.layer:
            raise EditError(
                f"edit of {self.name}: {condition.feature} is of a later layer, which is not known yet there"
            )

    @property
    def amount(self) -> float:
        """The strength, or what the op means without one."""
        return float(_USUAL[self.op] if self.strength is None else self.strength)

    @property
    def is_noop(self) -> bool:
        """Whether the edit is none at all."""
        return self.amount == 0 and self.op in ("add", "scale", "project")

    @property
    def condition(self) -> Condition | None:
        """What `when` says, read where it was given as text."""
        return Condition.parse(self.when) if isinstance(self.when, str) else self.when

    @property
    def layers(self) -> set[int]:
        """Layers whose SAE the edit needs."""
        of = [self.target_feature] if self.direction is None else []
        return {
            feature.layer
            for feature in (*of, *([self.condition.feature] if self.condition else []))
        }

    @property
    def layer(self) -> int:
        """The layer after which the residual is changed."""
        return self.direction.layer if self.direction is not None else self.target_feature.layer

    @property
    def name(self) -> str:
        """What is edited, as people read it: `17/23991`, or a direction's `NAME@17`."""
        return str(self.direction if self.direction is not None else self.target_feature)

    @property
    def target_feature(self) -> Feature:
        """The feature; raises EditError where the edit is of a direction."""
        if self.feature is None:
            raise EditError(f"edit of {self.name}: it is of a direction, not of a feature")
        return Feature.parse(self.feature) if isinstance(self.feature, str) else self.feature


def _check(what: str, values: Mapping[str, Any]) -> None:
    """Raises EditError for a value that no edit can have."""
    for name, allowed in (("op", Op), ("gate", Gate), ("scope", Scope)):
        if name in values and values[name] not in get_args(allowed):
            raise EditError(
                f"edit of {what}: {name} {values[name]!r} is not one of {', '.join(get_args(allowed))}"
            )
    op, strength, skip_sinks = (
        values.get("op", "scale"),
        values.get("strength"),
        values.get("skip_sinks", True),
    )
    if values.get("direction") is not None and op not in DIRECTION_OPS:
        raise EditError(
            f"edit of {what}: {op} needs a feature; a direction takes {', '.join(DIRECTION_OPS)}"
        )
    if strength is None:
        if op not in _USUAL:
            raise EditError(f"edit of {what}: {op} needs a strength")
        strength = _USUAL[op]
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise EditError(f"edit of {what}: strength {strength!r} is not a number")
    if not abs(strength) < _MOST:
        raise EditError(f"edit of {what}: strength {strength} is not finite in float32")
    if op == "project" and not 0 <= strength <= 1:
        raise EditError(
            f"edit of {what}: project removes a share between 0 and 1 of the component, not {strength}"
        )
    if not isinstance(values.get("when"), Condition | str | None):
        raise EditError(
            f'edit of {what}: when {values["when"]!r} is not a feature, as "17/555 > 2.5"'
        )
    if not isinstance(skip_sinks, bool):
        raise EditError(f"edit of {what}: skip_sinks {skip_sinks!r} is not true or false")


@dataclass(frozen=True)
class EditSet:
    """Edits and what they are for: a model, and an SAE ("" where none is needed), as far as they are known.

    Of the SAE: its sizes, its k, and the fingerprints of its files by layer.
    """

    model: str
    sae: str
    edits: tuple[Edit, ...]
    d_model: int | None = None
    d_sae: int | None = None
    k: int | None = None
    sae_files: Mapping[str, str] = field(default_factory=dict)

    def check(self, spec: SaeSpec) -> None:
        """Raises EditError for an SAE that is not the one these edits are of, naming what differs."""
        for what in ("d_model", "d_sae", "k"):
            wanted, found = getattr(self, what), getattr(spec, what)
            if wanted is not None and wanted != found:
                raise EditError(
                    f"these edits are of an SAE with {what} {wanted}, {spec.release} has {found}"
                )
        wanted = self.sae_files.get(str(spec.layer), spec.fingerprint)
        if wanted != spec.fingerprint:
            raise EditError(
                f"these edits are of another SAE: the file of layer {spec.layer} of {spec.release} is not the one they "
                f"were made with ({spec.fingerprint}, not {wanted})"
            )


def write_edits(edits: EditSet, path: Path, comments: Sequence[str] = ()) -> None:
    """Write an edits file whole or not at all; directions go into a file beside it, NAME.directions.safetensors.

    Raises ResourceError where it cannot be written.
    """
    directions = list(
        dict.fromkeys(edit.direction for edit in edits.edits if edit.direction is not None)
    )
    beside = path.with_name(f"{path.stem}.directions.safetensors")
    names = write_directions(directions, beside) if directions else []
    place = {one: f"{beside.name}#{name}" for one, name in zip(directions, names, strict=True)}
    lines = [f"# {''.join(c if c.isprintable() else ' ' for c in line)}" for line in comments]
    lines += [f"{f.name} = {_toml(getattr(edits, f.name))}" for f in fields(edits)
              if f.name != "edits" and getattr(edits, f.name) not in (None, "", {})]  # fmt: skip
    for edit in edits.edits:
        lines += [
            "",
            "[[edit]]",
            *(f"{key} = {_toml(value)}" for key, value in _row(edit, place).items()),
        ]
    replace_file(path, "\n".join(lines) + "\n")


def _row(edit: Edit, place: Mapping[Direction, str]) -> dict[str, Any]:
    """One edit as the keys of an edits file."""
    what: dict[str, Any] = {"feature": edit.name}
    if edit.direction is not None:
        what = {"direction": place[edit.direction], "layer": edit.layer}
    own = {name: getattr(edit, name) for name in ("gate", "scope", "skip_sinks")}
    when = {} if edit.condition is None else {"when": str(edit.condition)}
    return {**what, "op": edit.op, "strength": edit.amount, **own, **when}


def parse_edit(text: str) -> Edit:
    """An edit in words, `17/23991 scale -1 relu all`, the last ones left out at will; raises EditError otherwise.

    A direction's file stands for a feature: `japanese.safetensors add 2`, with `#TENSOR` where it has several and
    `@LAYER` where it does not say its layer; a name with spaces in quotes. `when 17/555 > 2.5` may come last.
    """
    text, condition, when = text.partition(" when ")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise EditError(f"edit {text!r}: {error}") from error
    if not 1 <= len(words) <= 5:
        raise EditError(
            f"edit {text!r} is not FEATURE OP STRENGTH GATE SCOPE when CONDITION, as 17/23991 scale -1"
        )
    values: dict[str, Any] = dict(zip(("op", "strength", "gate", "scope"), words[1:], strict=False))
    values |= {"when": when} if condition else {}
    try:
        values |= _named(words[0])
        if "strength" in values:
            values["strength"] = float(values["strength"])
    except (SourceError, ValueError) as error:
        raise EditError(f"edit {text!r}: {error}") from error
    return _made(values)


def _made(values: dict[str, Any]) -> Edit:
    """The edit of these values; raises EditError for what no type checker has seen."""
    _check(str(values.get("direction", values.get("feature"))), values)
    return Edit(**values)


def _named(word: str) -> dict[str, Feature | Direction]:
    if ".safetensors" in word:
        return {"direction": read_direction(*parse_direction_ref(word))}
    return {"feature": Feature.parse(word)}


def read_edits(path: str | Path) -> EditSet:
    """Read an edits file; raises EditError for anything unreadable, unknown or out of range, naming it."""
    path = Path(path).expanduser()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EditError(
            f"{path} does not exist: give an edits file, such as detect writes"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EditError(f"{path} is no edits file: {error}") from error
    rows = data.pop("edit", [])
    _check_keys(data, {f.name for f in fields(EditSet)} - {"edits"}, path, "the file")
    for key, kind in (("model", str), ("sae", str), ("d_model", int), ("d_sae", int), ("k", int)):
        if key in data and (not isinstance(data[key], kind) or isinstance(data[key], bool)):
            raise EditError(
                f"{path}: {key} is {data[key]!r}, not a {'string' if kind is str else 'number'}"
            )
    files = data.get("sae_files", {})
    if not isinstance(files, dict) or not all(isinstance(one, str) for one in files.values()):
        raise EditError(
            f'{path}: sae_files is not a table of fingerprints by layer, as {{ "17" = "sha256:…" }}'
        )
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        rows = []
    needed = ["model"] if rows and all("feature" not in row for row in rows) else ["model", "sae"]
    if missing := [key for key in needed if key not in data]:
        raise EditError(
            f"{path} does not say its {missing[0]}: an edit is of one model and one SAE"
        )
    if not rows:
        raise EditError(f"{path} has no [[edit]]")
    try:
        edits = tuple(_edit(row, path, n) for n, row in enumerate(rows, 1))
    except (EditError, SourceError) as error:
        raise EditError(f"{path}: {error}") from error
    return EditSet(**{"sae": "", **data}, edits=edits)


def _edit(row: Mapping[str, Any], path: Path, number: int) -> Edit:
    _check_keys(row, {*(f.name for f in fields(Edit)), "layer"}, path, f"edit {number}")
    values, layer = dict(row), row.get("layer")
    if ("feature" in row) == ("direction" in row):
        raise EditError(
            f"edit {number} names no feature, as 17/23991, and no direction: give one of the two"
        )
    if not isinstance(row.get("feature", row.get("direction")), str):
        raise EditError(f'edit {number}: what it is of is not a string, as "17/23991"')
    if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int)):
        raise EditError(f"edit {number}: layer {layer!r} is not a number")
    if "direction" in row:
        file, tensor, _ = parse_direction_ref(
            str(path.parent / Path(row["direction"]).expanduser())
        )
        values["direction"] = read_direction(file, tensor, layer)
    elif layer is not None:
        raise EditError(f"edit {number}: a feature says its layer itself; layer is a direction's")
    values.pop("layer", None)
    return _made(values)


def _check_keys(row: Mapping[str, Any], known: set[str], path: Path, where: str) -> None:
    if unknown := row.keys() - known:
        raise EditError(
            f"{path}: {where} has an unknown key {min(unknown)!r}; known are {', '.join(sorted(known))}"
        )


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(one)}" for key, one in value.items()) + " }"
    # A JSON string without escapes of surrogates is a TOML basic string, but for DEL.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")
