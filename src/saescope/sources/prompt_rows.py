"""Prompts from the rows of a file: which columns hold the text, the chat, the set and the rest."""

from collections.abc import Mapping

from saescope.sources.chats import Message, parse_messages
from saescope.sources.prompt_files import PromptRow
from saescope.sources.prompts import Prompt, Split

_CHAT_COLUMNS = ("messages", "conversations", "conversation")
_SPLIT_NAMES: Mapping[str, Split] = {
    "discovery": "discovery",
    "train": "discovery",
    "holdout": "holdout",
    "confirmation": "holdout",
    "validation": "holdout",
    "test": "holdout",
}


def prompt_of(row: PromptRow, default_set: str, id_prefix: str) -> Prompt:
    """Return a row's prompt; raises PromptError, with the row's location, if it is invalid."""
    set_name = row.string("set") or default_set or row.string("label")
    if not set_name:
        raise row.error("no `set`: in a single file, each row needs `set`")
    text, messages = row.string("text"), _messages(row)
    if text is None and messages is None and isinstance(row.values.get("prompt"), list):
        messages = _parsed(row, "prompt")
    elif text is None and messages is None:
        text = row.string("prompt")
    if (text is None) == (messages is None):
        raise row.error("needs either `text` or `messages` (or `prompt`, or `conversations`)")
    if text is not None and not text.strip():
        raise row.error("the text is empty")
    return Prompt(
        id=row.string("id") or f"{id_prefix}:{row.number}",
        set=set_name,
        text=text,
        messages=messages,
        pair=row.string("pair"),
        split=_parse_subset(row),
    )


def _messages(row: PromptRow) -> tuple[Message, ...] | None:
    """Return the chat of a row, with ShareGPT's `system` column as its first message."""
    present = [name for name in _CHAT_COLUMNS if row.values.get(name) is not None]
    if not present:
        return None
    if len(present) > 1:
        raise row.error(f"has both `{present[0]}` and `{present[1]}`: keep one")
    messages = _parsed(row, present[0])
    if present[0] == "messages" or messages[0].role == "system":
        return messages
    system = row.string("system")
    return (Message("system", system), *messages) if system else messages


def _parsed(row: PromptRow, column: str) -> tuple[Message, ...]:
    try:
        return parse_messages(row.objects(column) or [])
    except ValueError as error:
        raise row.error(str(error)) from error


def _parse_subset(row: PromptRow) -> Split | None:
    name = row.string("split")
    if name is None:
        return None
    if name not in _SPLIT_NAMES:
        raise row.error(f"split {name!r} is not one of {', '.join(_SPLIT_NAMES)}")
    return _SPLIT_NAMES[name]
