"""Options in files: saescope.toml in the working folder, and the user's own.

Anybody can have written the file that lies in a folder. It sets no option that runs code, sends
replies to a server or opens this machine to others, and no place outside its folder to write to:
those count only from the command line or from the user's own file.
"""

import os
import shlex
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclopts import App
from cyclopts.argument import ArgumentCollection, update_argument_collection

from saescope.errors import SaescopeError
from saescope.sources.regular_files import read_text

FOLDER_FILE = "saescope.toml"
_MOST_BYTES = 2**20
# Options whose values are code, or a server that gets the replies.
_JUDGES = ("judge",)
# Options by which others can reach a server here.
_ACCESS = ("host", "api_key")
# Options that name what is written, in every command or in some.
_OUTPUTS = ("out", "plot", "direction", "dir")
_OUTPUTS_OF: Mapping[str, tuple[str, ...]] = {"detect": ("edits",), "select": ("edits",)}


def user_file() -> Path:
    """Where the user's own settings are: ~/.config/saescope/config.toml, or in XDG_CONFIG_HOME."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "saescope" / "config.toml"


def outputs_of(verb: str) -> tuple[str, ...]:
    """The options of a command that name what it writes."""
    return (*_OUTPUTS, *_OUTPUTS_OF.get(verb, ()))


def check_settings(known_options: Callable[[], Collection[str]]) -> None:
    """Refuse a file that is not TOML, or has a key that is none of these options."""
    files = _files()
    known = known_options() if files else ()  # it imports every command
    for settings in files:
        for key in settings.values:
            if key not in known:
                raise SaescopeError(
                    f"{settings.path}: no command has an option {key!r}; "
                    "see saescope COMMAND --help"
                )


def fill_from_settings(app: App, verbs: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill options that the command line leaves out: from the folder's file, then the user's.

    cyclopts' own reader would leave out `layers`, which is an option and a command too.
    """
    apps = app.app_stack.stack[-1]
    verb = next(iter(verbs), "")
    for settings in _files():
        _refuse_untrusted(settings, verb, arguments)
        source = str(settings.path.absolute())
        update_argument_collection(
            settings.values, source, arguments, apps, root_keys=(), allow_unknown=True
        )


@dataclass(frozen=True)
class _SettingsFile:
    """Options by name, written with underscores, of one file."""

    path: Path
    is_users: bool
    values: dict[str, Any]


def _files() -> list[_SettingsFile]:
    """Read the files that exist; the first one that has an option decides it."""
    found = []
    for path, is_users in ((Path(FOLDER_FILE), False), (user_file(), True)):
        if os.path.lexists(path):
            values = {key.replace("-", "_"): value for key, value in _read(path).items()}
            found.append(_SettingsFile(path, is_users, values))
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path, _MOST_BYTES))
    except RecursionError as error:
        raise SaescopeError(f"{path} is nested too deeply") from error
    except (OSError, ValueError) as error:  # also numbers with more digits than Python reads
        raise SaescopeError(f"{path} is not readable as TOML: {error}") from error


def _refuse_untrusted(settings: _SettingsFile, verb: str, arguments: ArgumentCollection) -> None:
    """Refuse options that would count and that this file may not set."""
    open_names = {name for argument in arguments if not argument.tokens for name in argument.names}
    for key, value in settings.values.items():
        option = "--" + key.replace("_", "-")
        if option not in open_names or key not in (*_JUDGES, *_ACCESS, *outputs_of(verb)):
            continue
        if not isinstance(value, str):
            raise SaescopeError(f"{settings.path}: {key} must be text, got {value!r:.40}")
        if settings.is_users:
            _refuse_relative_code(settings.path, key, value)
            continue
        if key in _JUDGES:
            what = "may not choose the judge, which may be code or a server"
        elif key in _ACCESS:
            what = "may not decide who can reach this machine"
        elif not _is_inside(value):
            what = "names a place outside its folder to write to"
        else:
            continue
        raise SaescopeError(
            f"{settings.path} {what}: {key} = {value!r}; if you want it, type "
            f"{option} {shlex.quote(value)}, or set it in {user_file()}"
        )


def _refuse_relative_code(path: Path, key: str, value: str) -> None:
    """Refuse a judge's file that would be looked for in whichever folder one works in."""
    file = value.rpartition(":")[0]
    if key in _JUDGES and file.endswith(".py") and not Path(file).expanduser().is_absolute():
        raise SaescopeError(f"{path}: {key} = {value!r}: give the file's whole path")


def _is_inside(place: str) -> bool:
    """Whether a path leads to the working folder or below it, also through links."""
    try:
        return Path(place).expanduser().resolve().is_relative_to(Path().resolve())
    except (OSError, RuntimeError, ValueError):  # no such user, a circle of links, a NUL
        return False
