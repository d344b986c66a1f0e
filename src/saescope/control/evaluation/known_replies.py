"""Replies whose right labels are known, on which a judge's own error is measured. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saescope.errors import PromptError
from saescope.sources.mistaken import refuse_folder
from saescope.strict_json import from_json


@dataclass(frozen=True)
class KnownReply:
    """A reply whose right label is known."""

    text: str
    shows: bool
    "Whether it shows the behaviour."

    prompt: str = ""


@dataclass(frozen=True)
class KnownReplies:
    """Replies with known labels, and what they are, in words."""

    name: str
    replies: Sequence[KnownReply]


def read_known_replies(path: Path) -> KnownReplies:
    """Replies from a JSONL file with `text`, `shows` (true or false) and, optionally, `prompt`.

    Raises PromptError for other content, and unless some replies show the behaviour and some not.
    """
    refuse_folder(path, PromptError, "a JSONL file of replies with known labels")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise PromptError(f"{path} cannot be read: {error}") from error
    replies = [_read_reply(f"{path}:{n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    if len({reply.shows for reply in replies}) < 2:
        raise PromptError(f"{path} needs replies that show the behaviour, and others that do not")
    return KnownReplies(str(path), replies)


def _read_reply(place: str, line: str) -> KnownReply:
    try:
        row = from_json(line)
    except ValueError as error:
        raise PromptError(f"{place} is not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("shows"), bool):
        raise PromptError(f'{place}: a line holds {{"text": "…", "shows": true or false}}')
    text, prompt = row.get("text"), row.get("prompt", "")
    if not isinstance(text, str) or not isinstance(prompt, str):
        raise PromptError(f"{place}: text and prompt must be strings")
    return KnownReply(text, row["shows"], prompt)
