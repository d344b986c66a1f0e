"""Command-line options, derived from the fields of a request.

A field becomes an option with the field's docstring as help. Fields before `KW_ONLY` are arguments.
Sequences are written with commas (`--layers 0,17,35`), except those that a person repeats
(`--edit A --edit B`).
"""

from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from cyclopts import Group, Parameter, Token

from saescope.arguments import ranges_of

Command = TypeVar("Command", bound=Callable[..., int | None])

# Repeated on the command line, because their values may contain commas.
_REPEATED = ("edit", "text", "transfer")
# Options whose field cannot have their name: `as` is a keyword, `run` a method of requests.
_OPTION_NAMES = {"convert": "--as", "source_run": "--run"}
# Texts that a model reads; they may be empty or have a message of their own.
_TEXTS = ("prompt", "system", "instruction")
_HELP_ORDER = (
    "Arguments",
    "Edits",
    "Statistics",
    "Positions",
    "Method",
    "Replies",
    "Judge",
    "Model and SAE",
    "Output",
)
_TITLES = {
    "ContrastSettings": "Statistics",
    "DetectSettings": "Statistics",
    "Headline": "Statistics",
    "Masking": "Positions",
    "EditInputs": "Edits",
    "BakeSettings": "Method",
    "EvaluateSettings": "Method",
    "SelectSettings": "Method",
    "JudgeInputs": "Judge",
    "ReplyInputs": "Replies",
    "ModelInputs": "Model and SAE",
    "Output": "Output",
}
HELP_GROUPS = {title: Group(title, sort_key=n) for n, title in enumerate(_HELP_ORDER)}


@dataclass(frozen=True, kw_only=True)
class Output:
    """How a result is printed."""

    json: bool = False
    "Print one JSON document instead of tables."


def command(function: Command) -> Command:
    """Decorate a command: fields become options, and the request's docstring becomes its help."""
    for name, hint in get_type_hints(function).items():
        if is_dataclass(hint):
            as_options(hint)  # type: ignore[arg-type]
            if name == "request":
                function.__doc__ = hint.__doc__
    return function


def as_options(dataclass_type: type) -> None:
    """Make cyclopts read the fields of this dataclass, and of those nested in it, as options."""
    hints, ranges = get_type_hints(dataclass_type), ranges_of(dataclass_type)
    for field in fields(dataclass_type):
        hint = hints[field.name]
        if is_dataclass(hint):
            as_options(hint)  # type: ignore[arg-type]
            continue
        parameter = _parameter(field, hint)
        if parameter is not None:
            # cyclopts takes what it should know of a field from the field's annotation. The
            # ranges of its numbers stay with it.
            extras = (ranges[field.name],) if field.name in ranges else ()
            dataclass_type.__annotations__[field.name] = Annotated[hint, *extras, parameter]
            field.type = dataclass_type.__annotations__[field.name]
    title = _TITLES.get(dataclass_type.__name__, "Arguments")
    Parameter(name="*", group=HELP_GROUPS[title])(dataclass_type)


def _parameter(field: "Field[Any]", hint: Any) -> Parameter | None:
    """Return extra metadata for cyclopts, or None if the type is enough."""
    name = _OPTION_NAMES.get(field.name)
    if _is_sequence(hint) and field.name not in _REPEATED:
        return Parameter(
            name=name,
            converter=_split_commas,
            n_tokens=1,
            metavar="LIST",
            allow_leading_hyphen=True,
            negative="",
            show_choices=False,
            show_default=_show_sequence if field.default else False,
        )
    if _is_sequence(hint):
        return Parameter(name=name, negative="", show_default=bool(field.default))
    if int in _alternatives(hint):
        return Parameter(name=name, converter=_whole_number, allow_leading_hyphen=True)
    if hint is bool and field.default is False:
        return Parameter(name=name, negative="", show_default=False)
    if str in _alternatives(hint) and field.name not in _TEXTS:
        return Parameter(name=name, validator=_not_blank)
    if bool in get_args(hint):  # a choice that Python also takes as True or False
        return Parameter(name=name, negative=f"--no-{field.name}", metavar="CHOICE")
    return None if name is None else Parameter(name=name)


def _is_sequence(hint: Any) -> bool:
    return _item_type(hint) is not None


def _item_type(hint: Any) -> Any:
    """Return the type of a sequence's items, also in `tuple[int, ...] | Literal["all"] | None`."""
    for member in _alternatives(hint):
        if get_origin(member) is tuple:
            return get_args(member)[0]
    return None


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, without None; a type that is no union is its only member."""
    if get_origin(hint) in (tuple, Literal, None):
        return (hint,)
    return tuple(member for member in get_args(hint) if member is not NoneType)


def _split_commas(hint: Any, tokens: Sequence[Token]) -> Any:
    """Convert `0,17,35` to a tuple, and a word such as `all` to itself if the type allows it."""
    text = ",".join(token.value for token in tokens)
    words: list[str] = []
    for member in _alternatives(hint):
        if get_origin(member) is Literal:
            words.extend(get_args(member))
    if text in words:
        return text
    item_type = _item_type(hint)
    try:
        return tuple(item_type(part.strip()) for part in text.split(","))
    except ValueError as error:
        examples = {int: "numbers such as 0,17,35", float: "numbers such as 0.5,1,2"}
        expected = " or ".join([examples[item_type], *words])
        raise ValueError(f"expected {expected}, got {text!r:.60}") from error


def _whole_number(_hint: Any, tokens: Sequence[Token]) -> int:
    """Convert a whole number. cyclopts alone would round 1.5 to 2 without a word."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"expected a whole number, got {text!r:.40}") from error


def _not_blank(_hint: Any, value: Any) -> None:
    """Refuse an empty name of a model, a set and the like; scripts pass it by mistake."""
    if isinstance(value, str) and not value.strip():
        raise ValueError("it is empty: give a value, or leave the option out")


def _show_sequence(values: Sequence[Any]) -> str:
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
