"""A hub on 127.0.0.1 with enough protocol for huggingface_hub to list and download files.

It can misbehave: drop a connection within a file, stop sending, or send what is not the file.
"""

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
    """Repositories by id (folders), commits by revision, and a record of the downloads."""

    repos: Mapping[str, Path]
    revisions: Mapping[str, str]
    url: str = ""
    downloaded: list[str] = field(default_factory=list)
    sent: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # first byte, length
    drop_after: dict[str, int] = field(default_factory=dict)  # by file name; once
    stop_after: dict[str, int] = field(default_factory=dict)  # by file name; until the test ends
    damaged: set[str] = field(default_factory=set)  # file names whose last byte comes wrong
    etags: dict[Path, str] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    def etag(self, path: Path) -> str:
        """SHA-256 of a file's contents, or of its path if it is very large (and sparse)."""
        if path not in self.etags:
            data = str(path).encode() if path.stat().st_size > 2**28 else path.read_bytes()
            self.etags[path] = hashlib.sha256(data).hexdigest()
        return self.etags[path]

    def listing(self, repo: str, name: str) -> dict[str, object]:
        """A file's entry in the repository's listing; weights are in large file storage."""
        path = self.repos[repo] / name
        listing: dict[str, object] = {
            "rfilename": name,
            "size": path.stat().st_size,
            "blobId": self.etag(path),
        }
        if path.suffix in (".safetensors", ".pt"):
            listing["lfs"] = {
                "sha256": self.etag(path),
                "size": path.stat().st_size,
                "pointerSize": 130,
            }
        return listing

    def files(self, repo: str) -> list[str]:
        return sorted(
            p.relative_to(self.repos[repo]).as_posix()
            for p in self.repos[repo].rglob("*")
            if p.is_file()
        )


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve `hub` on a free port within the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    ).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.ended.set()
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
            case ["api", "models", name]:  # an old repository without an owner
                self._info(name, "main")
            case ["api", "models", owner, name]:
                self._info(f"{owner}/{name}", "main")
            case ["api", "models", owner, name, "revision", *revision]:
                self._info(f"{owner}/{name}", "/".join(revision))
            case [name, "resolve", revision, *path]:
                self._file(name, revision, "/".join(path))
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
            names = self.hub.files(repo)
            blobs = "blobs=" in self.path
            siblings = [
                self.hub.listing(repo, name) if blobs else {"rfilename": name} for name in names
            ]
            body = json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode()
            self._send(200, {"Content-Type": "application/json"}, body)

    def _file(self, repo: str, revision: str, name: str) -> None:
        if not (commit := self._commit(repo, revision)):
            return
        if name not in self.hub.files(repo):
            self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        path = self.hub.repos[repo] / name
        size = path.stat().st_size
        headers = {
            "ETag": f'"{self.hub.etag(path)}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        first, last = 0, size - 1
        if byte_range := self.headers.get("Range"):
            start, _, end = byte_range.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end) if end else last, last)
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._head(206 if byte_range else 200, headers, last + 1 - first)
        if self.command == "GET":
            self.hub.downloaded.append(f"{repo}/{name}")
            self.hub.sent.setdefault(name, []).append((first, last + 1 - first))
            self._body(path, first, last + 1 - first)

    def _body(self, path: Path, first: int, length: int) -> None:
        with path.open("rb") as file:
            file.seek(first)
            body = bytearray(file.read(length))
        if path.name in self.hub.damaged and first + length == path.stat().st_size:
            body[-1] ^= 1
        if (cut := self.hub.drop_after.pop(path.name, None)) is not None:
            self.wfile.write(body[:cut])
            self.close_connection = True
        elif (cut := self.hub.stop_after.get(path.name)) is not None:
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self.hub.ended.wait()
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _head(self, status: int, headers: Mapping[str, str], length: int) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self._head(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)
