"""Errors in the shape of OpenAI's API."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import JSONResponse

from saescope.surfaces.visible import visible

INVALID = "invalid_request_error"
# What pydantic calls the alternatives of a field.
_TYPES = ("str", "int", "float", "bool")
_OF_TYPE = ("list[", "function-", "constrained-")


class Problem(Exception):
    """An answer other than 200: HTTP status, one line, and the field it is about as a JSON path."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        kind: str = INVALID,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = visible(message)
        self.param = param
        self.kind = kind
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the JSON that OpenAI's clients read."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """Return the problem as an HTTP response."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


def json_path(location: Sequence[int | str]) -> str:
    """Return a field's place as a JSON path.

    >>> from saescope.surfaces.server.problems import json_path
    >>> json_path(["steering", "edits", 0, "feature"])
    'steering.edits[0].feature'
    """
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    return path.removeprefix(".")


def from_validation(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """Return the first thing that is wrong with a request, as pydantic reports it.

    A field that may have several types has an error for each. The one deepest in the field tells
    most.
    """
    if errors[0]["type"] == "json_invalid":
        return Problem(400, "the body is not JSON")
    first = max((error for error in errors if _field(error) == _field(errors[0])), key=_depth)
    value = first.get("input")
    given = "" if first["type"] == "missing" else f", got {_short(value)}"
    path = json_path(_location(first))
    message = str(first["msg"])
    where = f"{path}: " if path else ""
    return Problem(400, f"{where}{message[:1].lower()}{message[1:]}{given}", param=path or None)


def _field(error: Mapping[str, Any]) -> Sequence[int | str]:
    return _location(error)[:1]


def _depth(error: Mapping[str, Any]) -> int:
    return len(_location(error))


def _location(error: Mapping[str, Any]) -> list[int | str]:
    """Return where an error is, without the names of alternative types."""
    steps: Sequence[int | str] = error["loc"][1:]  # the first says that it is in the body
    return [
        step
        for step in steps
        if isinstance(step, int) or not (step in _TYPES or step.startswith(_OF_TYPE))
    ]


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:79]}…"
