"""Append-only JSONL cache for resuming work that is published only as a whole."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, final

from saescope.errors import ResourceError
from saescope.sources.locks import Note, one_writer
from saescope.store.atomic import disk_errors


@final
class ResumeCache:
    """Results of finished steps by key, one JSON line each; without a path, in memory only.

    Values are plain (what JSON can hold); make keys of everything that decides a value with
    `key_of`. A truncated last line, left by an interruption, is ignored.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import saescope as ss
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "cache.jsonl"
    ...     ss.ResumeCache(path).put("a", {"score": 0.5})
    ...     ss.ResumeCache(path)["a"]
    {'score': 0.5}
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        if path is not None and path.is_file():
            try:
                self._read(path.read_bytes())
            except OSError as error:
                raise ResourceError(f"cannot read {path}: {error.strerror or error}") from error

    def _read(self, content: bytes) -> None:
        for line in content.split(b"\n"):
            try:
                key, value = json.loads(line)
            except (ValueError, TypeError, RecursionError):  # an interruption truncated this line
                continue
            self._values[str(key)] = value

    @contextmanager
    def alone(self, note: Note | None = None) -> Iterator[None]:
        """Compute in this block; another process that needs the same steps waits, and has them.

        `note` gets a line before this waits.
        """
        if self.path is None:
            yield
            return
        with ExitStack() as stack:
            kept: list[BinaryIO] = []

            def keep_open() -> None:
                # Who publishes the whole removes the file: what is open can still be read.
                with suppress(OSError):
                    if not kept and self.path is not None:
                        kept.append(stack.enter_context(self.path.open("rb")))

            with one_writer(self.path, note=note, while_waiting=keep_open):
                for file in kept:
                    self._read(file.read())
                if self.path.is_file():
                    self._read(self.path.read_bytes())
                yield

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def put(self, key: str, value: Any) -> None:
        """Store a plain value and append it to the file; raises ResourceError if that fails."""
        self._values[key] = value
        if self.path is None:
            return
        line = json.dumps([key, value], ensure_ascii=False) + "\n"
        with disk_errors(self.path, "free space: the same command resumes what was stored"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if _ends_within_a_line(self.path):
                line = "\n" + line
            _append(self.path, line.encode("utf-8", "surrogatepass"))

    def forget(self) -> None:
        """Remove the file, once the whole is published."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def key_of(*parts: Any) -> str:
    """Return the SHA-256 over the plain values that decide a result."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _append(path: Path, line: bytes) -> None:
    """Append in one write: lines of several processes then do not mix."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        if os.write(handle, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(handle)


def _ends_within_a_line(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"
