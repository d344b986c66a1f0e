"""A judge that asks a server over HTTP."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, final
from urllib.parse import urlsplit, urlunsplit

from saescope.control.evaluation.foreign_code import within
from saescope.control.evaluation.judge import UNSCORED, Label, Reply, as_label, reply_text
from saescope.errors import JudgeError, first_line
from saescope.store.resume_cache import ResumeCache, key_of
from saescope.strict_json import from_json

KEY = "SAESCOPE_JUDGE_KEY"
"Environment variable with a bearer token for the server."
_LONGEST_WAIT = 60.0
_MOST_BYTES = 1 << 20


@final
@dataclass(frozen=True)
class HttpJudge:
    """Labels replies by asking a server, once per reply: its labels are kept.

    Posts `{"prompt": …, "reply": …}` and expects `{"label": …}`; with a `batch_size` over 1, posts
    `{"items": […]}` and expects `{"labels": […]}`. A label is a name, true or false, or null for
    UNSCORED. Raises JudgeError if the URL or a number cannot be used.

    >>> from saescope.judges import HttpJudge
    >>> HttpJudge("https://user:secret@example.org/judge", batch_size=8).describe()
    {'name': 'https://example.org/judge', 'url': 'https://example.org/judge', 'batch': 8}
    """

    url: str
    batch_size: int = 1
    "Replies per request."
    timeout: float = 60.0
    "Seconds to wait for an answer."
    tries: int = 4
    "Attempts per request; busy servers and broken connections are tried again."
    cache: ResumeCache = field(default_factory=ResumeCache)
    "Labels from earlier requests."
    wait: Callable[[float], None] = time.sleep
    "Called with the seconds until the next attempt."

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise JudgeError(f"judge {self.url!r} is no http:// or https:// URL")
        if self.batch_size < 1 or self.tries < 1 or not 0 < self.timeout < float("inf"):
            raise JudgeError(
                f"judge {self.public_url}: batch_size {self.batch_size}, tries {self.tries} "
                f"and timeout {self.timeout} must be over 0"
            )

    @property
    def public_url(self) -> str:
        """The URL without user, password and query, which may be secret."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", ""))

    def describe(self) -> dict[str, Any]:
        """The server's URL without secrets."""
        return {"name": self.public_url, "url": self.public_url, "batch": self.batch_size}

    def label_all(self, replies: Sequence[Reply]) -> list[Label]:
        """One label per reply, from the cache if it is there.

        Raises JudgeError if the server gives no labels; those it gave before are kept.
        """
        items = {self._key(reply): _item(reply) for reply in replies}
        missing = [key for key in items if key not in self.cache]
        for start in range(0, len(missing), self.batch_size):
            keys = missing[start : start + self.batch_size]
            try:
                labels = self._ask([items[key] for key in keys])
            except JudgeError as error:
                n_labelled = len(items) - len(missing) + start
                raise JudgeError(f"{error}; {self._progress(n_labelled, len(items))}") from error
            for key, label in zip(keys, labels, strict=True):
                self.cache.put(key, label)
        return [self.cache[self._key(reply)] for reply in replies]

    def _progress(self, n_labelled: int, n_replies: int) -> str:
        progress = f"{n_labelled} of these {n_replies} replies are judged"
        return f"{progress} and kept in {self.cache.path}" if self.cache.path else progress

    def _key(self, reply: Reply) -> str:
        return key_of("judge", self.url, _item(reply))

    def _ask(self, items: Sequence[dict[str, str]]) -> list[Label]:
        if self.batch_size == 1:
            values = [_unwrapped(self._post(items[0]), "label")]
        else:
            values = _unwrapped(self._post({"items": items}), "labels")
        if not isinstance(values, list) or len(values) != len(items):
            raise JudgeError(
                f"judge {self.public_url} did not give {len(items)} labels: {str(values)[:100]!r}"
            )
        try:
            return [_label(value) for value in values]
        except ValueError as error:
            raise JudgeError(
                f"judge {self.public_url} gave no label: {str(error)[:200]}"
            ) from error

    def _post(self, document: Any) -> Any:
        """The server's answer; busy servers and broken connections are tried again."""
        reason = ""
        for attempt in range(1, self.tries + 1):
            retry_after = None
            try:
                return within(self.timeout, lambda: self._post_once(document))
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code} {error.reason}"
                if error.code != 429 and error.code < 500:
                    refusal = f"judge {self.public_url} refused: {reason}: {_body(error)}"
                    raise JudgeError(refusal) from error
                retry_after = error.headers.get("Retry-After")
                error.close()
            except (OSError, HTTPException) as error:  # URLError and timeouts among them
                reason = first_line(getattr(error, "reason", error))
            except ValueError as error:
                raise JudgeError(
                    f"judge {self.public_url} did not answer in JSON: {error}"
                ) from error
            if attempt < self.tries:
                self.wait(_pause(attempt, retry_after))
        raise JudgeError(f"judge {self.public_url} did not answer in {self.tries} tries: {reason}")

    def _post_once(self, document: Any) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = os.environ.get(KEY)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        data = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
        request = urllib.request.Request(self.url, data, headers)
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=self.timeout) as answer:
            return from_json(answer.read(_MOST_BYTES).decode("utf-8"))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: a redirected POST would arrive without its body."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _item(reply: Reply) -> dict[str, str]:
    return {"prompt": reply.prompt.request, "reply": reply_text(reply.text).strip()}


def _unwrapped(document: Any, name: str) -> Any:
    """The value of this name if the answer is an object that has one, else the answer itself."""
    return document.get(name, document) if isinstance(document, dict) else document


def _label(value: Any) -> Label:
    """The label of one item; null stands for UNSCORED."""
    if isinstance(value, dict) and "label" in value:
        value = value["label"]
    return UNSCORED if value is None else as_label(value)


def _body(error: urllib.error.HTTPError) -> str:
    try:
        return " ".join(error.read(200).decode("utf-8", "replace").split())
    except OSError:
        return ""


def _pause(attempt: int, retry_after: str | None) -> float:
    """Seconds until the next attempt: half a second, doubled each time, or what the server asks."""
    try:
        requested = float(retry_after or 0)
    except ValueError:  # a date
        requested = 0.0
    backoff = 0.5 * 2 ** (attempt - 1)
    return float(min(_LONGEST_WAIT, max(requested, backoff)))
