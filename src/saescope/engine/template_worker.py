"""A program that renders chat templates with limits; it is run as a process of its own.

Each line of standard input is a JSON request, each line of standard output the answer. The system
ends this process when a template takes more time than `SECONDS`, inside a loop or inside one
operation, and lets it have no more memory than `MEMORY`. Imports nothing of saescope.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

SECONDS = 2.0
"Seconds of computation per chat. Real templates take milliseconds."
MEMORY = 512 << 20
"Bytes that a template may use."
CHARACTERS = 1 << 24
"Characters of a rendered chat."
READY = "ready\n"
"What the program writes before it takes requests."
_TAG = "CONTINUED_HERE"


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing but answers may reach the pipe
    _limit_memory()
    answers.write(READY)
    answers.flush()
    for line in sys.stdin:
        _limit_time(SECONDS)
        answer = _answer(json.loads(line))
        _limit_time(0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        text = _render(**request)
    except MemoryError:
        return {"limit": True}
    except Exception as error:  # templates may raise any exception
        lines = str(error).strip().splitlines()
        return {"error": lines[0] if lines else type(error).__name__}
    return {"limit": True} if len(text) > CHARACTERS else {"text": text}


def _render(
    template: str,
    messages: list[dict[str, Any]],
    variables: Mapping[str, Any],
    *,
    continues: bool,
    answers: bool,
) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    def render(chat: list[dict[str, Any]], *, continue_final_message: bool) -> str:
        rendered: Any = render_jinja_template(
            conversations=[chat],
            chat_template=template,
            continue_final_message=continue_final_message,
            add_generation_prompt=answers,
            **variables,
        )
        [text], _ = rendered
        return str(text)

    if not continues:
        return render(messages, continue_final_message=False)
    try:
        return render(messages, continue_final_message=True)
    except ValueError:
        # The template rewrites the last message, for example its thinking.
        text, tag, _ = render(_tagged(messages), continue_final_message=False).rpartition(_TAG)
        if not tag:
            raise
        return text


def _tagged(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with a tag at the end of the last one."""
    *before, last = messages
    content = last["content"]
    if isinstance(content, str):
        return [*before, {**last, "content": content + _TAG}]
    part = {**content[-1], "text": content[-1]["text"] + _TAG}
    return [*before, {**last, "content": [*content[:-1], part]}]


def _limit_time(seconds: float) -> None:
    """Let the system end this process after so many seconds of computation; 0 for no limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    try:
        import resource

        import transformers.utils.chat_template_utils  # noqa: F401 - not counted as a template's

        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    except (ImportError, OSError, ValueError):
        pass  # other systems have no such limit; the time limit holds there too


if __name__ == "__main__":
    main()
