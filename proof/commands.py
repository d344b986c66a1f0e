"""saescope's commands, run in the data folder as a reader would type them there."""

import contextlib
import io
import json
import shlex
from collections.abc import Sequence
from typing import Any

from proof.folder import DataFolder

GEMMA = ("--model", "models/gemma3", "--sae", "saes/gemma3")


class CommandFailed(Exception):
    """A saescope command ended with an unexpected exit code."""


def saescope(folder: DataFolder, *words: str, exit_codes: Sequence[int] = (0,)) -> dict[str, Any]:
    """Run a command in the data folder and return its JSON document."""
    from saescope.surfaces.cli import run

    out = io.StringIO()
    with contextlib.chdir(folder.root), contextlib.redirect_stdout(out):
        code = run([*words, "--json"])
    if code not in exit_codes:
        raise CommandFailed(f"{typed(*words)} ends with exit code {code}")
    document: dict[str, Any] = json.loads(out.getvalue())
    return document


def typed(*words: str) -> str:
    """Return a command as a reader types it, wrapped at 100 columns."""
    lines, line = [], "saescope"
    for group in _groups(words):
        if len(line) + len(group) + 1 > 96:
            lines.append(line)
            line = "   "
        line += f" {group}"
    return " \\\n".join([*lines, line])


def _groups(words: tuple[str, ...]) -> list[str]:
    """Quote words, and keep an option and its value on one line."""
    groups: list[str] = []
    for word in words:
        quoted = f'"{word}"' if shlex.quote(word) != word and '"' not in word else word
        if groups and groups[-1].startswith("--") and " " not in groups[-1] and word[:2] != "--":
            groups[-1] += f" {quoted}"
        else:
            groups.append(quoted)
    return groups
