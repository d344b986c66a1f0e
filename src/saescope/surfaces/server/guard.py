"""What every request must pass: the host it names, the key, the size of its body."""

import hmac
import json
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saescope.surfaces.server.problems import Problem

MOST_BYTES = 4 * 2**20
_OPEN = ("/health",)
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


class Guard:
    """Refuses requests with another host's name, without the key, or with too large a body.

    A page of another site could make a browser ask a local server under a name that resolves to
    it (DNS rebinding): a server on loopback answers only to loopback's own names.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None, loopback: bool) -> None:
        self._app = app
        self._key = None if api_key is None else api_key.encode()
        self._loopback = loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            self._check_host(headers)
            if scope["path"] not in _OPEN:
                self._check_key(headers)
            body = await _read_body(headers, receive)
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        if not self._loopback:
            return
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if name not in _LOOPBACK_NAMES:
            raise Problem(403, f"host {host!r:.80} is not this machine: use 127.0.0.1")
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and origin != f"http://{host}":
            raise Problem(403, f"origin {origin!r:.80} is another site: only this server's page")

    def _check_key(self, headers: dict[bytes, bytes]) -> None:
        if self._key is None:
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._key):
            raise Problem(
                401,
                "the key is missing or wrong: send Authorization: Bearer KEY",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


async def _read_body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """Return the whole body. Raises Problem once it is too large."""
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > MOST_BYTES:
        raise _too_large()
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > MOST_BYTES:
            raise _too_large()
        more = message.get("more_body", False)
    return b"".join(chunks)


def _too_large() -> Problem:
    return Problem(413, f"the body is larger than {MOST_BYTES // 2**20} MiB")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body once, then waits for what the client does next."""
    given = False

    async def next_message() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return next_message


def event(data: Any) -> str:
    """Return one server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return f"data: {text}\n\n"
