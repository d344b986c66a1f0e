"""A hub on 127.0.0.1: enough of its protocol for huggingface_hub to list, check and download files of folders."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Hub:
    """Repositories by id, each a folder at one commit with names for it, and what has been asked for."""

    repos: Mapping[str, Path]
    revisions: Mapping[str, str]
    url: str = ""
    downloaded: list[str] = field(default_factory=list)

    def files(self, repo: str) -> list[str]:
        return sorted(p.relative_to(self.repos[repo]).as_posix() for p in self.repos[repo].rglob("*") if p.is_file())


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve `hub` on a free port within the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        match unquote(self.path.partition("?")[0]).strip("/").split("/"):
            case ["api", "models", owner, name]:
                self._info(f"{owner}/{name}", "main")
            case ["api", "models", owner, name, "revision", *revision]:
                self._info(f"{owner}/{name}", "/".join(revision))
            case [owner, name, "resolve", revision, *path]:
                self._file(f"{owner}/{name}", revision, "/".join(path))
            case _:
                self._send(404, {"X-Error-Message": "no such address"})

    def _commit(self, repo: str, revision: str) -> str | None:
        if repo not in self.hub.repos:
            self._send(404, {"X-Error-Code": "RepoNotFound"})
            return None
        if revision in self.hub.revisions.values():
            return revision
        if revision not in self.hub.revisions:
            self._send(404, {"X-Error-Code": "RevisionNotFound"})
            return None
        return self.hub.revisions[revision]

    def _info(self, repo: str, revision: str) -> None:
        if commit := self._commit(repo, revision):
            siblings = [{"rfilename": name} for name in self.hub.files(repo)]
            body = json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode()
            self._send(200, {"Content-Type": "application/json"}, body)

    def _file(self, repo: str, revision: str, name: str) -> None:
        if not (commit := self._commit(repo, revision)):
            return
        if name not in self.hub.files(repo):
            self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        body = (self.hub.repos[repo] / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if self.command == "GET":
            self.hub.downloaded.append(f"{repo}/{name}")
        if wanted := self.headers.get("Range"):
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), int(end) if end else len(body) - 1
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            self._send(206, headers, body[first : last + 1])
        else:
            self._send(200, headers, body)

    def _send(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
