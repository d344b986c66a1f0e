"""Judges from outside: a Python function in a file or module, or a server that is asked over HTTP."""

import importlib
import importlib.util
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, final
from urllib.parse import urlsplit, urlunsplit

from saescope.control.evaluation.behaviour import (
    UNSCORED,
    Judge,
    Label,
    Reply,
    as_label,
    reply_text,
)
from saescope.errors import JudgeError, first_line
from saescope.sources.prompts import Prompt
from saescope.store.resume_cache import ResumeCache, key_of

KEY = "SAESCOPE_JUDGE_KEY"
_LONGEST_WAIT = 60.0
_MOST_BYTES = 1 << 20


def load_function(place: str) -> Judge:
    """The function of `path/to/file.py:function` or `module:function`; raises JudgeError where there is none."""
    where, _, name = place.rpartition(":")
    if not where or not name.isidentifier():
        raise JudgeError(f"judge {place!r} is not FILE.py:FUNCTION, MODULE:FUNCTION or a URL")
    try:
        module = (
            _from_file(Path(where).expanduser())
            if where.endswith(".py")
            else importlib.import_module(where)
        )
    except Exception as error:  # importing runs the user's own code
        raise JudgeError(
            f"judge {place}: {where} cannot be imported: {first_line(error)}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise JudgeError(f"judge {place}: {where} has no function {name!r}")
    judge: Judge = function
    return judge


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    spec = importlib.util.spec_from_file_location(f"saescope_judge_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive without its body."""

    def redirect_request(self, *_: Any) -> None:
        return None


@final
@dataclass(frozen=True)
class HttpJudge:
    """A server that says what replies show: `{prompt, reply}` is posted as JSON, `{"label": …}` comes back.

    A label is true, a name, false, or null for one that the server could not judge. With `batch` over 1 that many are
    posted as `{"items": […]}` and `{"labels": […]}` comes back. Equal replies to equal prompts are asked about once,
    and never again while they are `kept`. What may pass by itself (no connection, 429, 5xx) is tried again, waiting
    longer each time. A key in the environment variable SAESCOPE_JUDGE_KEY is sent as a bearer token.
    """

    url: str
    batch: int = 1
    timeout: float = 60.0
    tries: int = 4
    kept: ResumeCache = field(default_factory=ResumeCache)
    wait: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise JudgeError(f"judge {self.url!r} is no http:// or https:// URL")
        if self.batch < 1 or self.tries < 1 or not 0 < self.timeout < float("inf"):
            raise JudgeError(
                f"judge {self.shown}: batch {self.batch}, tries {self.tries} and timeout {self.timeout} must be over 0"
            )

    @property
    def shown(self) -> str:
        """The URL without what may be secret in it."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def describe(self) -> dict[str, Any]:
        """Where was asked."""
        return {"name": self.shown, "url": self.shown, "batch": self.batch}

    def label_all(self, replies: Sequence[Reply]) -> list[Label]:
        """A label a reply, those that are kept without asking; raises JudgeError where the server gives none."""
        items = {self._key(reply): _item(reply) for reply in replies}
        missing = [key for key in items if key not in self.kept]
        for start in range(0, len(missing), self.batch):
            keys = missing[start : start + self.batch]
            try:
                labels = self._ask([items[key] for key in keys])
            except JudgeError as error:
                done = len(items) - len(missing) + start
                raise JudgeError(
                    f"{error}; {done} of these {len(items)} replies are judged{self._where()}"
                ) from error
            for key, label in zip(keys, labels, strict=True):
                self.kept.put(key, label)
        return [self.kept[self._key(reply)] for reply in replies]

    def _where(self) -> str:
        return f" and kept in {self.kept.path}" if self.kept.path else ""

    def _key(self, reply: Reply) -> str:
        return key_of("judge", self.url, _item(reply))

    def _ask(self, items: Sequence[dict[str, str]]) -> list[Label]:
        document = self._post(items[0] if self.batch == 1 else {"items": items})
        if isinstance(document, dict):
            document = document.get("label" if self.batch == 1 else "labels", document)
        values = [document] if self.batch == 1 else document
        if not isinstance(values, list) or len(values) != len(items):
            raise JudgeError(
                f"judge {self.shown} did not give {len(items)} labels: {str(document)[:100]!r}"
            )
        try:
            return [_given(value) for value in values]
        except ValueError as error:
            raise JudgeError(f"judge {self.shown} gave no label: {str(error)[:200]}") from error

    def _post(self, document: Any) -> Any:
        for attempt in range(1, self.tries + 1):
            reason, again = "", None
            try:
                return self._post_once(document)
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code} {error.reason}"
                if error.code != 429 and error.code < 500:
                    raise JudgeError(
                        f"judge {self.shown} refused: {reason}: {_body(error)}"
                    ) from error
                again = error.headers.get("Retry-After")
            except (OSError, HTTPException) as error:  # URLError and timeouts among them
                reason = first_line(getattr(error, "reason", error))
            except ValueError as error:
                raise JudgeError(f"judge {self.shown} did not answer in JSON: {error}") from error
            if attempt < self.tries:
                self.wait(_pause(attempt, again))
        raise JudgeError(f"judge {self.shown} did not answer in {self.tries} tries: {reason}")

    def _post_once(self, document: Any) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        data = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
        request = urllib.request.Request(self.url, data, headers)
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as answer:
            return json.loads(answer.read(_MOST_BYTES))


def _item(reply: Reply) -> dict[str, str]:
    return {"prompt": _asked(reply.prompt), "reply": reply_text(reply.text).strip()}


def _asked(prompt: Prompt) -> str:
    """What was asked: the text, or the last turn of a chat."""
    return prompt.text if prompt.text is not None else (prompt.messages or ())[-1].content


def _given(value: Any) -> Label:
    """A label of one item; a server's null is no judgement."""
    if isinstance(value, dict) and "label" in value:
        value = value["label"]
    return UNSCORED if value is None else as_label(value)


def _body(error: urllib.error.HTTPError) -> str:
    try:
        return " ".join(error.read(200).decode("utf-8", "replace").split())
    except OSError:
        return ""


def _pause(attempt: int, again: str | None) -> float:
    """Seconds until the next try: what the server asks for, else half a second, doubled each time."""
    try:
        asked = float(again) if again else 0.0
    except ValueError:  # a date
        asked = 0.0
    return float(min(_LONGEST_WAIT, max(asked, 0.5 * 2 ** (attempt - 1))))
