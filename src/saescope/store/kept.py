"""Finished parts of long work that is published only as a whole, kept so that the same work goes on from them."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from saescope.errors import ResourceError


@final
class Kept:
    """Values by what made them, a line each in one file that is only ever appended to; in memory without a path."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._known: dict[str, Any] = {}
        if path is None:
            return
        try:
            lines = path.read_bytes().split(b"\n") if path.is_file() else []
        except OSError as error:
            raise ResourceError(f"cannot read {path}: {error.strerror or error}") from error
        for line in lines:
            try:
                key, value = json.loads(line)
            except (ValueError, TypeError):  # a line that an interruption cut short
                continue
            self._known[str(key)] = value

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def put(self, key: str, value: Any) -> None:
        """Keep a plain value; raises ResourceError where it cannot be written."""
        self._known[key] = value
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(
                    "\n" * self._cut_short() + json.dumps([key, value], ensure_ascii=False) + "\n"
                )
        except OSError as error:
            raise ResourceError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _cut_short(self) -> bool:
        """Whether the file ends within a line."""
        assert self.path is not None
        if not self.path.is_file() or not self.path.stat().st_size:
            return False
        with self.path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) != b"\n"

    def forget(self) -> None:
        """Remove the file: the whole is published."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def key_of(*parts: Any) -> str:
    """A name for what made a value: SHA-256 over plain values."""
    text = json.dumps(_plain(parts), ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(parts: Any) -> Any:
    return list(parts) if isinstance(parts, Sequence) and not isinstance(parts, str) else parts
