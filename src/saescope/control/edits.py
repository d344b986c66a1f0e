"""Edits: which features or directions change, how, and by how much. Imports no torch."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from saescope.arguments import STRENGTH, show_number
from saescope.errors import EditError, SourceError
from saescope.sources.catalog import Feature, SaeSpec
from saescope.sources.direction_files import is_direction_file
from saescope.sources.directions import Direction, parse_direction_ref, read_direction
from saescope.sources.neutral_mean import NeutralMean

Op = Literal["add", "scale", "clamp", "readout_clamp", "project"]
Gate = Literal["relu", "topk"]
Scope = Literal["all", "prefill", "decode", "last"]
DIRECTION_OPS: tuple[Op, ...] = ("add", "project", "readout_clamp")
DEFAULT_STRENGTHS: Mapping[str, float] = {
    "scale": -1.0,
    "clamp": 0.0,
    "readout_clamp": 0.0,
    "project": 1.0,
}
_FLOAT32_MAX = 3.4e38
_EDITS_SHOWN = 6


@dataclass(frozen=True)
class FeatureCondition:
    """Restricts an edit to positions where another feature's activation exceeds a threshold."""

    feature: Feature
    "The feature whose activation is compared."

    above: float = 0.0
    "The edit applies only if the activation exceeds this threshold. Default: 0, the feature fires."

    def __str__(self) -> str:
        return f"{self.feature} > {self.above!r}" if self.above else str(self.feature)

    @classmethod
    def parse(cls, text: str) -> "FeatureCondition":
        """Return the condition written as `17/555` or `17/555 > 2.5`, else raise EditError."""
        feature, separator, above = text.partition(">")
        if not separator:
            above = "0"
        try:
            condition = cls(Feature.parse(feature), float(above))
        except (SourceError, ValueError) as error:
            raise EditError(f"condition {text!r}: expected 17/555 or 17/555 > 2.5") from error
        if not 0 <= condition.above < _FLOAT32_MAX:
            raise EditError(
                f"condition {text!r}: threshold must be a finite number of at least 0, "
                f"got {condition.above}"
            )
        return condition


@dataclass(frozen=True, repr=False)
class Edit:
    """One change to the residual after a layer, along a feature's decoder column or a direction.

    Pass either `feature` or `direction`. `formulae.py` has the formula of each op. Raises EditError
    for invalid values.

    >>> import saescope as ss
    >>> edit = ss.Edit("2/412", "scale", -2.0, when="1/30 > 0.5")
    >>> edit.name, edit.layer, sorted(edit.sae_layers)
    ('2/412', 2, [1, 2])
    >>> ss.parse_edit("2/412 scale -2 when 1/30 > 0.5") == edit
    True
    """

    feature: Feature | str | None = None
    "The feature to edit, such as 17/23991."

    op: Op = "scale"
    "add, scale (the contribution), clamp (the activation), readout_clamp, or project (remove)."

    strength: float | int | None = None
    (
        "add: multiples of the decoder column or of the stored direction. scale: add `strength` "
        "times the feature's contribution (-1 removes it, 1 doubles it; default: -1). clamp, "
        "readout_clamp: the target (default: 0). project: the share of the component to remove "
        "(default: 1)."
    )

    gate: Gate = "relu"
    (
        "Which rule decides whether the feature is active: relu (pre-activation above 0) or topk "
        "(the SAE's own activation, TopK, JumpReLU or BatchTopK)."
    )

    scope: Scope = "all"
    "Positions to edit: all, those of the prompt (prefill), generated ones (decode), or the last."

    skip_sinks: bool = True
    "Leave the first position and attention sinks unedited."

    direction: Direction | None = None
    "A plain direction to edit along, instead of a feature."

    when: FeatureCondition | str | None = None
    "Edit only positions where a feature up to this layer fires, such as 17/555 or 17/555 > 2.5."

    about: NeutralMean | None = None
    (
        "The mean residual of this layer, from `neutral_means`: project then removes what differs "
        "from it, and receipts compare changes with the spread about it. Default: about zero."
    )

    def __repr__(self) -> str:
        """Return what differs from the defaults: caches of finished work tell edits apart by it."""
        parts = [] if self.feature is None else [repr(str(self.feature))]
        for one in fields(self)[1:]:
            value = getattr(self, one.name)
            if one.name == "op" or value != one.default:
                shown = repr(str(value)) if one.name == "when" else repr(value)
                parts.append(f"{one.name}={shown}")
        return f"Edit({', '.join(parts)})"

    def __post_init__(self) -> None:
        if (self.feature is None) == (self.direction is None):
            raise EditError("pass either a feature (such as 17/23991) or a direction")
        if isinstance(self.feature, str):
            object.__setattr__(self, "feature", Feature.parse(self.feature))
        if isinstance(self.when, str):
            object.__setattr__(self, "when", FeatureCondition.parse(self.when))
        _check_values(self.name, vars(self))
        if self.about is not None and self.about.layer != self.layer:
            raise EditError(
                f"edit of {self.name}: about is the mean of layer {self.about.layer}, "
                f"not {self.layer}"
            )
        condition = self.condition
        if condition is not None and condition.feature.layer > self.layer:
            raise EditError(
                f"edit of {self.name}: a condition must read this layer or an earlier one, "
                f"got {condition.feature}"
            )

    @property
    def amount(self) -> float:
        """The effective strength: `strength`, or the default of the op."""
        if self.strength is None:
            return DEFAULT_STRENGTHS[self.op]
        return float(self.strength)

    @property
    def is_noop(self) -> bool:
        """Whether the edit leaves every residual unchanged."""
        return self.amount == 0 and self.op in ("add", "scale", "project")

    @property
    def condition(self) -> FeatureCondition | None:
        """`when` as a FeatureCondition; None if the edit applies at all targeted positions."""
        if isinstance(self.when, str):
            return FeatureCondition.parse(self.when)
        return self.when

    @property
    def sae_layers(self) -> set[int]:
        """Layers whose SAEs the edit needs: those of its feature and of its condition."""
        layers = set()
        if self.direction is None:
            layers.add(self.layer)
        if self.condition is not None:
            layers.add(self.condition.feature.layer)
        return layers

    @property
    def layer(self) -> int:
        """The layer after which the residual is changed."""
        return self.target.layer

    @property
    def name(self) -> str:
        """Human-readable target: `17/23991`, or `NAME@17` for a direction."""
        return str(self.target)

    @property
    def target(self) -> Feature | Direction:
        """The feature or direction that is edited."""
        return self.direction or self.target_feature

    @property
    def target_feature(self) -> Feature:
        """The feature that is edited; raises EditError if the edit targets a direction."""
        if self.feature is None:
            raise EditError(f"edit of {self.name}: it targets a direction, not a feature")
        if isinstance(self.feature, str):
            return Feature.parse(self.feature)
        return self.feature


@dataclass(frozen=True, repr=False)
class EditSet:
    """Edits with the model and the SAE that they belong to: the content of an edits file.

    >>> import saescope as ss
    >>> edits = ss.EditSet("saescope-tiny", "saescope-tiny-sae", (ss.Edit("2/5"),), d_sae=512)
    >>> [edit.name for edit in edits.edits]
    ['2/5']
    >>> edits.check_sae(ss.load_sae("saescope-tiny-sae", 2).spec)
    """

    model: str
    "Name or path of the model."

    sae: str
    'Name or path of the SAE; "" if all edits target plain directions.'

    edits: tuple[Edit, ...]
    "The edits, all applied to the same residual."

    d_model: int | None = None
    "Width of the residual, if known."

    d_sae: int | None = None
    "Number of features of the SAE, if known."

    k: int | None = None
    "The SAE's k, if it uses TopK."

    sae_files: Mapping[str, str] = field(default_factory=dict)
    "Fingerprint of the SAE file by layer, if known."

    def __repr__(self) -> str:
        lines = [f"EditSet: {len(self.edits)} edits of {self.model} with SAE {self.sae or 'none'}"]
        lines += [f"  {edit!r}" for edit in self.edits[:_EDITS_SHOWN]]
        if len(self.edits) > _EDITS_SHOWN:
            lines.append(f"  … {len(self.edits) - _EDITS_SHOWN} more in .edits")
        return "\n".join(line if len(line) <= 100 else line[:99] + "…" for line in lines)

    def check_sae(self, spec: SaeSpec) -> None:
        """Raise EditError if the edits belong to another SAE, naming what differs."""
        for size in ("d_model", "d_sae", "k"):
            expected, actual = getattr(self, size), getattr(spec, size)
            if expected is not None and expected != actual:
                raise EditError(
                    f"edits expect {size} {expected}, this SAE ({spec.release}) has {size} {actual}"
                )
        expected = self.sae_files.get(str(spec.layer), spec.fingerprint)
        if expected != spec.fingerprint:
            raise EditError(
                f"edits belong to another SAE: they expect fingerprint {expected} for layer "
                f"{spec.layer}, {spec.release} has {spec.fingerprint}"
            )


def parse_edit(text: str) -> Edit:
    """Return the edit written as `FEATURE OP STRENGTH GATE SCOPE when CONDITION`.

    Trailing fields are optional, so `17/23991 scale -1` is an edit. Instead of a feature, pass the
    file of a direction: `japanese.safetensors add 2`. Append `#TENSOR` if the file holds several
    tensors and `@LAYER` if the file does not store a layer. Quote names with spaces. Raises
    EditError for any other text.

    >>> import saescope as ss
    >>> edit = ss.parse_edit("17/23991 add 2 relu decode")
    >>> edit.op, edit.amount, edit.scope
    ('add', 2.0, 'decode')
    """
    text, _, when = text.partition(" when ")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise EditError(f"edit {text!r}: {error}") from error
    if not 1 <= len(words) <= 5:
        raise EditError(
            f"edit {text!r} is not FEATURE OP STRENGTH GATE SCOPE when CONDITION, "
            "such as 17/23991 scale -1"
        )
    target, *options = words
    values: dict[str, Any] = dict(zip(("op", "strength", "gate", "scope"), options, strict=False))
    if when:
        values["when"] = when
    try:
        if is_direction_file(target):
            values["direction"] = read_direction(*parse_direction_ref(target))
        else:
            values["feature"] = Feature.parse(target)
        if "strength" in values:
            values["strength"] = _number(values["strength"])
    except (SourceError, ValueError) as error:
        raise EditError(f"edit {text!r:.80}: {error}") from error
    return edit_from_values(values)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"strength {text!r:.40} is not a number") from error


def edit_from_values(values: Mapping[str, Any]) -> Edit:
    """Return the edit with these unvalidated values; raises EditError if any is invalid."""
    target = values.get("direction", values.get("feature"))
    _check_values(str(target), values)
    return Edit(**values)


def _check_values(name: str, values: Mapping[str, Any]) -> None:
    """Raise EditError if a value is invalid; absent fields have their defaults."""
    for key, choices in (("op", Op), ("gate", Gate), ("scope", Scope)):
        allowed = get_args(choices)
        if values.get(key, allowed[0]) not in allowed:
            raise EditError(
                f"edit of {name}: {key} {values[key]!r} is not one of {', '.join(allowed)}"
            )
    op = values.get("op", "scale")
    if values.get("direction") is not None and op not in DIRECTION_OPS:
        raise EditError(
            f"edit of {name}: {op} needs a feature; a direction takes {', '.join(DIRECTION_OPS)}"
        )
    _check_strength(name, op, values.get("strength"))
    if not isinstance(values.get("when"), FeatureCondition | str | None):
        raise EditError(
            f'edit of {name}: when {values["when"]!r} is not a condition such as "17/555 > 2.5"'
        )
    skip_sinks = values.get("skip_sinks", True)
    if not isinstance(skip_sinks, bool):
        raise EditError(f"edit of {name}: skip_sinks {skip_sinks!r} is not true or false")


def _check_strength(name: str, op: str, strength: Any) -> None:
    if strength is None:
        if op not in DEFAULT_STRENGTHS:
            raise EditError(f"edit of {name}: {op} needs a strength")
        return
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise EditError(f"edit of {name}: strength {strength!r} is not a number")
    if not abs(strength) < _FLOAT32_MAX:
        shown = show_number(strength)
        raise EditError(f"edit of {name}: strength {shown} is not finite in float32")
    if abs(strength) > STRENGTH.high:
        raise EditError(
            f"edit of {name}: strength must be a number below 1e6 in size, "
            f"got {show_number(strength)}"
        )
    if op == "project" and not 0 <= strength <= 1:
        raise EditError(
            f"edit of {name}: project removes a share between 0 and 1 of the component, "
            f"got {strength}"
        )
