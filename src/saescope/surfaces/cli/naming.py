"""Messages name options as they are typed: `max_other` of the library is `--max-other` here.

The library writes arguments in three ways, and no other word is changed: at the start of an
ArgumentError, before an equals sign (`pass k=`, `set keep_pos0=True`), and with an underscore.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import Parameter

from cyclopts import App

from saescope.errors import ArgumentError

_SWITCHES = {"True": "--", "False": "--no-"}
# Not within a path, a quotation, an option, or a longer name.
_WORD = re.compile(r"(?<![\w./'\"@=-])([a-z]\w*)(=(True|False|'[\w./-]+')?|(?![\w=]))(?!\.\w|/)")


_COMMAND: ContextVar[Callable[[], App] | None] = ContextVar("the command that runs", default=None)


@contextmanager
def options_of(command: Callable[[], App] | None) -> Iterator[None]:
    """Within the context, texts name the options of this command; None changes no text.

    `command` is called when a text first needs the names.
    """
    token = _COMMAND.set(command)
    try:
        yield
    finally:
        _COMMAND.reset(token)


def _names() -> Mapping[str, str]:
    command = _COMMAND.get()
    return {} if command is None else typed_names(command())


def typed_names(command: App) -> dict[str, str]:
    """Return how each argument of a command is typed: `max_other` as `--max-other`."""
    names: dict[str, str] = {}
    for argument in command.assemble_argument_collection():
        name, field = argument.names[0], argument.field_info
        if name != "*":
            positional = field.kind is not Parameter.KEYWORD_ONLY
            names[field.name] = field.name.upper() if positional else name
    return names


def message_of(error: BaseException) -> str:
    """Return the error's message with options named as they are typed."""
    if isinstance(error, ArgumentError):
        return f"{_names().get(error.name, error.name)} {as_typed(error.reason)}"
    return as_typed(str(error))


def as_typed(text: str) -> str:
    """Return the text with options named as they are typed."""
    names = _names()

    def typed(match: re.Match[str]) -> str:
        name, assigned, value = match[1], match[2], match[3]
        if name not in names or not (assigned or "_" in name):
            return match[0]
        option = names[name]
        if value in _SWITCHES:
            return option.replace("--", _SWITCHES[value], 1)
        if value:
            return f"{option} " + value.strip("'")
        follows = text[match.end() : match.end() + 1]
        return f"{option} " if assigned and follows not in ("", " ", ",", ";", ":", ")") else option

    return _WORD.sub(typed, text)
