"""Messages of a chat, as data sets write them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HALF_SURROGATE = "half of a surrogate pair, which no tokenizer can read"
# Names of turns in ShareGPT's form, which has `from` and `value`.
_SHAREGPT_ROLES: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_CALLS = ("tool_calls", "function_call")
Content = str | tuple[str, ...] | None
"What a message says: a text, the texts of its parts, or nothing if it only calls tools."


@dataclass(frozen=True)
class Message:
    """One message of a chat: who speaks (`system`, `user` or `assistant`) and what it says.

    `content` is a text, the texts of several parts, or None if the message only calls tools.
    `fields` holds what else the chat template gets, such as `name` or `tool_calls`.

    >>> import saescope as ss
    >>> from saescope.sources.chats import Message
    >>> chat = (Message("user", "Hello!"), Message("assistant", ("Good ", "morning.")))
    >>> ss.Prompt(id="chat:1", set="chats", messages=chat).display_text
    '[user] Hello! [assistant] Good morning.'
    """

    role: str
    content: Content
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def text(self) -> str:
        """Return what the message says, parts joined."""
        if isinstance(self.content, tuple):
            return "".join(self.content)
        return self.content or ""

    @property
    def calls_tools(self) -> bool:
        """Return whether the message calls tools."""
        return any(self.fields.get(name) for name in _CALLS)

    def to_dict(self) -> dict[str, Any]:
        """Return the message as chat templates take it."""
        content: dict[str, Any] = {"content": self.content}
        if self.content is None:
            content = {}
        elif isinstance(self.content, tuple):
            content = {"content": [{"type": "text", "text": text} for text in self.content]}
        return {"role": self.role, **content, **self.fields}


def parse_message(value: object) -> Message:
    """Return a message from `role` and `content`, or from ShareGPT's `from` and `value`.

    Keys whose value is null are left out, as in data sets that hold every key in every message.
    Raises ValueError, with the reason, for anything that is no text.
    """
    if not isinstance(value, Mapping):
        raise ValueError("each message is an object with `role` and `content`")
    present = {str(key): item for key, item in value.items() if item is not None}
    if "role" not in present and "from" in present:
        return _sharegpt_message(present)
    role, content = present.pop("role", None), present.pop("content", None)
    if not isinstance(role, str) or not role:
        raise ValueError("a message has no `role`, or one that is no string")
    _refuse_unreadable(role, present)
    message = Message(role, _content(content), present)
    if message.content is None and not message.calls_tools:
        raise ValueError("the `content` of a message is missing or null")
    return message


def parse_messages(values: Sequence[object]) -> tuple[Message, ...]:
    """Return the messages of a chat; raises ValueError for one that is no text."""
    return tuple(parse_message(value) for value in values)


def has_half_surrogates(text: str) -> bool:
    """Return whether a text has half of a surrogate pair."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _sharegpt_message(present: Mapping[str, Any]) -> Message:
    speaker, content = present["from"], present.get("value")
    role = _SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        known = ", ".join(_SHAREGPT_ROLES)
        raise ValueError(
            f"a message is from {speaker!r}, which is no turn of a chat: use one of {known}"
        )
    if not isinstance(content, str):
        raise ValueError("the `value` of a message is missing or no string")
    return Message(role, _content(content))


def _content(content: object) -> Content:
    if content is None:
        return None
    if isinstance(content, str):
        return _readable(content)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        kind = type(content).__name__
        raise ValueError(f"the `content` of a message is a {kind}, not a string or text parts")
    if not content:
        raise ValueError("the `content` of a message is an empty list")
    return tuple(_part(part) for part in content)


def _part(part: object) -> str:
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text":
        raise ValueError(
            f"a message has a part of type {kind!r}: only text can be read, so remove the part"
        )
    if not isinstance(text, str):
        raise ValueError("a text part of a message has no `text`")
    return _readable(text)


def _readable(text: str) -> str:
    if has_half_surrogates(text):
        raise ValueError(f"the `content` of a message has {HALF_SURROGATE}")
    return text


def _refuse_unreadable(role: str, fields: Mapping[str, Any]) -> None:
    """Raise ValueError for values that JSON, and so a run, cannot hold."""
    for name, value in {"role": role, **fields}.items():
        try:
            plain = json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"the `{name}` of a message is no JSON value: {error}") from error
        if has_half_surrogates(plain):
            raise ValueError(f"the `{name}` of a message has {HALF_SURROGATE}")
