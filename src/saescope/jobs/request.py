"""The base class of requests: run, serialize, deserialize."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

from saescope.arguments import check_arguments
from saescope.errors import SaescopeError
from saescope.jobs.reporter import SILENT, Reporter

AnyRequest = TypeVar("AnyRequest", bound="Request")


class Request:
    """Base of all requests: frozen dataclasses that hold all inputs of one command.

    The CLI derives its options from the fields and their docstrings, and so does the JSON schema.
    A field is described in one place.
    """

    verb: ClassVar[str]

    def __post_init__(self) -> None:
        """Raise ArgumentError for a number outside its range, also in nested inputs."""
        check_arguments(self)

    def run(self, reporter: Reporter = SILENT) -> Any:
        """Do what the request asks and return the result; raises SaescopeError for bad input."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return the request as plain JSON values; `from_dict` reads them back."""
        plain: dict[str, Any] = _plain(asdict(self))  # type: ignore[call-overload]
        return plain

    @classmethod
    def from_dict(cls: type[AnyRequest], values: Mapping[str, Any]) -> AnyRequest:
        """Read what `to_dict` wrote; raises SaescopeError for an unknown key or a wrong type."""
        from pydantic import ValidationError

        try:
            request: AnyRequest = _adapter(cls).validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            raise SaescopeError(f"not a {cls.verb} request: {_first_problem(error)}") from error
        return request

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON schema of `to_dict`, with every field's description."""
        schema: dict[str, Any] = _adapter(cls).json_schema()
        return schema

    def record(self) -> dict[str, Any]:
        """Return the command entry of a run's manifest, without `out`."""
        values = self.to_dict()
        values.pop("out", None)
        return {"verb": self.verb, "request": values}


def _plain(value: Any) -> Any:
    """Convert paths to text and tuples to lists, at any depth."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _adapter(request: type[Request]) -> Any:
    from pydantic import TypeAdapter

    # pydantic reads these settings from each class; lower layers do not import pydantic.
    for dataclass in _nested(request):
        config = {"extra": "forbid", "use_attribute_docstrings": True}
        dataclass.__pydantic_config__ = config  # type: ignore[attr-defined]
    return TypeAdapter(request)


def _nested(kind: type) -> Iterator[type]:
    """Yield a dataclass and every dataclass among the types of its fields."""
    yield kind
    hints = get_type_hints(kind)
    for field in fields(kind):
        hint = hints[field.name]
        for option in (hint, *get_args(hint)):
            if isinstance(option, type) and is_dataclass(option):
                yield from _nested(option)


def _first_problem(error: Any) -> str:
    """Return the first validation error as one line: field, reason and value."""
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg'].lower()}, got {problem['input']!r}"
