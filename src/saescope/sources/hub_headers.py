"""Headers of the hub's answers, checked before huggingface_hub makes paths of them.

It puts a file into `blobs/ETAG` and `snapshots/COMMIT`, and takes both from the server as they
come: a server that says `../..` would write outside the cache.
"""

import re
from collections.abc import Callable
from typing import Any, final

from saescope.errors import SourceError
from saescope.sources.file_names import check_hash

_COMMIT, _ETAGS = "X-Repo-Commit", ("X-Linked-Etag", "ETag")
_ETAG = re.compile(r'(?:W/)?"?[\w+=-][\w.+=-]*"?')


@final
class _GuardedFactory:
    """Makes huggingface_hub's HTTP clients, which check every answer."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        self.factory = factory

    def __call__(self) -> Any:
        client = self.factory()
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "response": [*hooks.get("response", ()), check_headers]}
        return client


def guard_client() -> None:
    """Let huggingface_hub's client, also one made anew after an error, check every answer."""
    from huggingface_hub.utils import _http

    factory: Callable[[], Any] = _http._GLOBAL_CLIENT_FACTORY
    if not isinstance(factory, _GuardedFactory):
        _http.set_client_factory(_GuardedFactory(factory))


def check_headers(response: Any) -> None:
    """Raise SourceError for an answer whose commit or ETag would be a path elsewhere."""
    commit = response.headers.get(_COMMIT)
    if commit is None:
        return
    source = str(response.request.url.host)
    check_hash(commit, source, "the commit")
    if response.request.method != "HEAD" or response.status_code >= 400:
        return
    for name in _ETAGS:
        value = response.headers.get(name)
        if value is not None and not _ETAG.fullmatch(value):
            raise SourceError(f"{source}: {name} is {value!r:.80}, not the name of a file: refused")
