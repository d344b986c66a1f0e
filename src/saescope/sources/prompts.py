"""Prompts and sets of prompts. Knows no file, no tokenizer and no model."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from saescope.errors import PromptError
from saescope.sources.chats import HALF_SURROGATE, Message, has_half_surrogates

Split = Literal["discovery", "holdout"]


_PROMPTS_SHOWN = 3
_TEXT_SHOWN = 16


@dataclass(frozen=True, repr=False)
class Prompt:
    """One prompt of a set: either a `text` or the `messages` of a chat.

    `id` is unique over all sets. `pair` links prompts with the same content in different sets,
    such as translations. `split` assigns the prompt to discovery or holdout; without it,
    `split_prompts` assigns it by hash.

    >>> import saescope as ss
    >>> prompt = ss.Prompt(id="en:1", set="english", text="Good morning", pair="greeting")
    >>> prompt.display_text
    'Good morning'
    """

    id: str
    set: str
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    pair: str | None = None
    split: Split | None = None

    def __repr__(self) -> str:
        kind = "text" if self.messages is None else f"chat of {len(self.messages)}"
        pair = f", pair={self.pair!r:.16}" if self.pair else ""
        text = " ".join(self.display_text.split())
        text = text if len(text) <= _TEXT_SHOWN else f"{text[: _TEXT_SHOWN - 1]}…"
        return f"Prompt({self.id!r:.20}, {kind} {text!r:.30}{pair})"

    @property
    def display_text(self) -> str:
        """Return the text, or all messages of a chat on one line."""
        if self.text is not None:
            return self.text
        return " ".join(f"[{m.role}] {m.text}" for m in self.messages or ())

    @property
    def request(self) -> str:
        """Return the text, or the last message of a chat's user; empty if there is none."""
        if self.text is not None:
            return self.text
        from_user = [message.text for message in self.messages or () if message.role == "user"]
        return from_user[-1] if from_user else ""


@dataclass(frozen=True, repr=False)
class PromptSet:
    """A named group of prompts.

    >>> import saescope as ss
    >>> [greetings] = ss.texts(["Good morning", "Good evening"], name="greetings")
    >>> greetings.name, len(greetings)
    ('greetings', 2)
    """

    name: str
    prompts: tuple[Prompt, ...]

    def __repr__(self) -> str:
        lines = [f"PromptSet({self.name!r:.40}): {len(self.prompts):,} prompts"]
        lines += [f"  {prompt!r}" for prompt in self.prompts[:_PROMPTS_SHOWN]]
        if len(self.prompts) > _PROMPTS_SHOWN:
            lines.append("  … all of them: .prompts")
        return "\n".join(lines)

    def __len__(self) -> int:
        return len(self.prompts)


def texts(lines: Iterable[str], name: str = "prompts") -> tuple[PromptSet, ...]:
    """Return one prompt set of these texts, in a tuple because `read_prompts` returns several.

    Raises PromptError if there are no texts, or if one is empty or holds an unpaired surrogate.

    >>> import saescope as ss
    >>> [prompts] = ss.texts(["Good morning", "Good evening"])
    >>> [prompt.id for prompt in prompts.prompts]
    ['prompts:1', 'prompts:2']
    """
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise PromptError(f"{name}:{number}: the text is empty")
        if has_half_surrogates(line):
            raise PromptError(f"{name}:{number}: the text has {HALF_SURROGATE}")
        prompts.append(Prompt(f"{name}:{number}", name, text=line))
    return group_by_set(prompts)


def group_by_set(prompts: Iterable[Prompt]) -> tuple[PromptSet, ...]:
    """Group prompts by the set of each; raises PromptError for a repeated id or no prompt."""
    by_set: dict[str, list[Prompt]] = {}
    ids: set[str] = set()
    for prompt in prompts:
        if prompt.id in ids:
            raise PromptError(
                f"prompt id {prompt.id!r} occurs twice: ids must be unique over all sets"
            )
        ids.add(prompt.id)
        by_set.setdefault(prompt.set, []).append(prompt)
    if not by_set:
        raise PromptError("no prompts were given")
    return tuple(PromptSet(name, tuple(members)) for name, members in by_set.items())


def fingerprint(sets: Iterable[PromptSet]) -> str:
    """Return the SHA-256 over every field of every prompt, in order."""
    fields = [
        [prompt_set.name, [_plain(prompt) for prompt in prompt_set.prompts]] for prompt_set in sets
    ]
    text = json.dumps(fields, ensure_ascii=False, sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _plain(prompt: Prompt) -> dict[str, Any]:
    messages = None
    if prompt.messages is not None:
        messages = [message.to_dict() for message in prompt.messages]
    return {**vars(prompt), "messages": messages}
