"""Token ids of a chat: its template is rendered by transformers, with limits on time and output."""

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from saescope.engine import template_worker
from saescope.errors import PromptError, SourceError, first_line
from saescope.sources.chats import Message
from saescope.sources.prompts import Prompt

_TOOL_ROLES = ("tool", "ipython", "function")
# Beyond this, the worker is ended even if it does not compute; starting it takes about a second.
_PATIENCE = 60.0
_READS_CLOCK = "strftime_now"  # the function of transformers by which a template gets the date


def chat_ids(tokenizer: Any, prompt: Prompt, thinking: bool | None) -> list[int]:
    """Return the token ids of a chat, those of transformers' `apply_chat_template`.

    A chat that ends in an assistant's text is continued. Raises PromptError if the template refuses
    the chat, leaves out its tool calls, or takes more time or memory than a template needs.
    """
    from transformers import PreTrainedTokenizerBase

    chat = _Chat(prompt.id, prompt.messages or (), thinking)
    if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
        return _ids_without_template(tokenizer, chat)
    text = _rendered(tokenizer, chat)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


@dataclass(frozen=True)
class _Chat:
    """The messages of a prompt, and how the template is asked to show them."""

    prompt_id: str
    messages: tuple[Message, ...]
    thinking: bool | None

    @property
    def options(self) -> dict[str, Any]:
        return {} if self.thinking is None else {"enable_thinking": self.thinking}

    @property
    def answers(self) -> bool:
        """Whether the template shall begin an assistant's turn."""
        return self.messages[-1].role != "assistant"

    @property
    def continues(self) -> bool:
        """Whether the last message shall stay open."""
        return not self.answers and self.messages[-1].content is not None

    @property
    def in_other_form(self) -> "_Chat":
        """Texts as one part each, and parts as one text."""

        def other(message: Message) -> Message:
            content: str | tuple[str, ...] = message.text
            if isinstance(message.content, str):
                content = (message.content,)
            return replace(message, content=None if message.content is None else content)

        return replace(self, messages=tuple(map(other, self.messages)))

    def refusal(self, reason: object) -> PromptError:
        return PromptError(f"prompt {self.prompt_id} does not fit the chat template: {reason}")


def _ids_without_template(tokenizer: Any, chat: _Chat) -> list[int]:
    """Return the ids from a tokenizer that formats chats in its own code, as Mistral's does."""
    try:
        ids = tokenizer.apply_chat_template(
            [message.to_dict() for message in chat.messages],
            tokenize=True,
            return_dict=False,
            add_generation_prompt=chat.answers,
            continue_final_message=chat.continues,
            **chat.options,
        )
    except Exception as error:  # tokenizers may raise any exception
        raise chat.refusal(first_line(error)) from error
    return list(ids)


def _rendered(tokenizer: Any, chat: _Chat) -> str:
    template = _template(tokenizer, chat)
    variables = {**tokenizer.special_tokens_map, **chat.options}
    text = _render(template, variables, chat)
    if not _shows_users(text, chat):
        text = _render_in_other_form(template, variables, chat) or text
    _refuse_lost_tools(text, chat)
    return text


def _template(tokenizer: Any, chat: _Chat) -> str:
    if tokenizer.chat_template is None:
        raise PromptError(
            f"prompt {chat.prompt_id} is a chat, but this tokenizer has no chat template: "
            "use a text instead of messages"
        )
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise chat.refusal(first_line(error)) from error


def _render(template: str, variables: Mapping[str, Any], chat: _Chat) -> str:
    request = {
        "template": template,
        "messages": [message.to_dict() for message in chat.messages],
        "variables": variables,
        "continues": chat.continues,
        "answers": chat.answers,
    }
    answer = _answer(request)
    if answer is None or answer.get("limit"):
        raise chat.refusal(
            f"it takes more than {template_worker.SECONDS:g} s, "
            f"{template_worker.MEMORY >> 20} MiB or {template_worker.CHARACTERS:,} characters, "
            "as no working template does: use another one"
        )
    if "error" in answer:
        raise chat.refusal(answer["error"])
    return str(answer["text"])


def _answer(request: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the worker's answer, remembered unless the template may ask for the time.

    An evaluation renders each of its prompts once per condition.
    """
    line = json.dumps(request)
    if _READS_CLOCK in line:
        return _worker.ask(line)
    try:
        return _remembered(line)
    except _LimitReached:
        return None


class _LimitReached(Exception):
    """A limit ended the worker. Raised because a cache keeps no exceptions."""


@lru_cache(maxsize=4096)
def _remembered(line: str) -> dict[str, Any]:
    answer = _worker.ask(line)
    if answer is None:
        raise _LimitReached
    return answer


def _render_in_other_form(template: str, variables: Mapping[str, Any], chat: _Chat) -> str | None:
    """Return the chat with text as parts, or parts as text, if that shows what users say."""
    other = chat.in_other_form
    try:
        text = _render(template, variables, other)
    except PromptError:
        return None
    return text if _shows_users(text, other) else None


def _shows_users(text: str, chat: _Chat) -> bool:
    """Whether a rendered chat has the users' words, and not Python's notation of their parts."""
    for message in chat.messages:
        if message.role != "user":
            continue
        parts = message.content if isinstance(message.content, tuple) else (message.text,)
        if not all(part.strip() in text for part in parts):
            return False
        if isinstance(message.content, tuple) and str(message.to_dict()["content"]) in text:
            return False
    return True


def _refuse_lost_tools(text: str, chat: _Chat) -> None:
    """Raise PromptError if the template leaves out a tool's call or answer."""
    for message in chat.messages:
        for name in _called_tools(message):
            if name not in text:
                raise chat.refusal(f"it leaves out the call of the tool {name!r}: remove the call")
        words = message.text.strip()
        if message.role in _TOOL_ROLES and words not in text and _escaped(words) not in text:
            raise chat.refusal(f"it leaves out a message of the role {message.role!r}: remove it")


def _called_tools(message: Message) -> list[str]:
    calls = message.fields.get("tool_calls") or []
    names = []
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function", call) if isinstance(call, dict) else {}
        names.append(function.get("name") if isinstance(function, dict) else None)
    legacy = message.fields.get("function_call")
    if isinstance(legacy, dict):
        names.append(legacy.get("name"))
    return [name for name in names if isinstance(name, str)]


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


class _Worker:
    """The process that renders templates: started when first asked, replaced when it ends."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, line: str) -> dict[str, Any] | None:
        """Return the worker's answer to a request in JSON; None if a limit ended it."""
        with self._lock:
            process = self._running()
            with _patience(process):
                answer = _exchange(process, line)
            if not answer:
                self._end()
                return None
        plain: dict[str, Any] = json.loads(answer)
        return plain

    def _running(self) -> "subprocess.Popen[str]":
        """Return the process; a fork of this program starts its own."""
        process = self._process
        if process is None or self._owner != os.getpid() or process.poll() is not None:
            process = self._process = _start()
            self._owner = os.getpid()
        return process

    def _end(self) -> None:
        """End the process, unless it belongs to the program that this one was forked from."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not written is lost with the process
                    pipe.close()


def _exchange(process: "subprocess.Popen[str]", line: str) -> str:
    """Send a line and return the answer; empty if the process has ended."""
    if process.stdin is None or process.stdout is None:
        return ""
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    except OSError:
        return ""


def _start() -> "subprocess.Popen[str]":
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "USE_TORCH": "0",  # templates need none of it, and its import takes seconds
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    process = subprocess.Popen(
        [sys.executable, "-P", str(Path(template_worker.__file__))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        encoding="utf-8",
    )
    with _patience(process):
        ready = process.stdout.readline() if process.stdout else ""
    if ready != template_worker.READY:
        process.kill()
        raise SourceError(
            "the program that renders chat templates does not start: "
            f"{sys.executable} ended with code {process.wait()}"
        )
    return process


@contextmanager
def _patience(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Within the context, the process is ended if it does not answer for a long time."""
    timer = Timer(_PATIENCE, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


_worker = _Worker()
atexit.register(_worker._end)
