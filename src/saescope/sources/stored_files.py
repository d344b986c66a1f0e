"""The files that decide a job: their fingerprints, and later whether they are still the same."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saescope.errors import SourceError
from saescope.sources.files import Files, HubFiles, LocalFiles
from saescope.sources.fingerprints import WHOLE, fingerprint, whole_hash

# A tokenizer's files have many names; of a local folder, all that may be some are read.
_TEXT_FILE = re.compile(
    r"(token|vocab|merges|special|added|template|tekken|spiece|sentencepiece|bpe)"
    r".*\.(json|txt|jinja|model|tiktoken|bpe|v\d+)$",
    re.IGNORECASE,
)
_TEMPLATES = "additional_chat_templates"
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Hashing this much takes about two seconds; what is larger is hashed only on request.
_QUICK_BYTES = 2 * 2**30


@dataclass(frozen=True)
class StoredFile:
    """A file of a model or SAE: its path, size, fingerprint, and SHA-256 if that is known."""

    name: str
    path: Path
    bytes: int
    fingerprint: str
    sha256: str | None


def stored_files(files: Files, names: Iterable[str]) -> tuple[StoredFile, ...]:
    """These files of a checkpoint, each once, in this order."""
    return tuple(_stored_file(files, name) for name in dict.fromkeys(names))


def text_files(files: Files) -> list[str]:
    """Names of a local folder's files that may belong to the tokenizer or its chat template.

    A hub repository is pinned by its commit.
    """
    if not isinstance(files, LocalFiles):
        return []
    templates = (files.folder / _TEMPLATES).glob("*.jinja")
    return [
        *(name for name in files.names() if _TEXT_FILE.search(Path(name).name)),
        *(f"{_TEMPLATES}/{path.name}" for path in templates),
    ]


def digest_of(stored: Sequence[StoredFile]) -> str:
    """One fingerprint of several files."""
    digest = hashlib.sha256()
    for file in sorted(stored, key=lambda file: file.name):
        digest.update(f"{file.name}={file.fingerprint}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def file_records(stored: Sequence[StoredFile], *, hash_all: bool = False) -> dict[str, Any]:
    """What a manifest says of the files: size, fingerprint and SHA-256.

    The SHA-256 is left out of large local files unless together they are quickly hashed, or
    `hash_all`.
    """
    unknown = sum(file.bytes for file in stored if file.sha256 is None)
    hashes = hash_all or unknown <= _QUICK_BYTES
    return {file.name: _record(file, hashes) for file in stored}


def changed_files(files: Files, records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say which files are not those of the records; all bytes are read if a SHA-256 is recorded."""
    changes = [_change(files, name, record) for name, record in records.items()]
    return [f"{files.name}: {change}" for change in changes if change is not None]


def without_hash(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the files whose SHA-256 was not recorded."""
    return [name for name, record in records.items() if not record.get("sha256")]


def _stored_file(files: Files, name: str) -> StoredFile:
    path = files.path(name)
    value = fingerprint(path)
    scheme, _, digest = value.partition(":")
    sha256 = digest if scheme == WHOLE else _hub_hash(files, name, path)
    return StoredFile(name, path, path.stat().st_size, value, sha256)


def _hub_hash(files: Files, name: str, path: Path) -> str | None:
    """The SHA-256 that the hub states; its cache names large files by it."""
    if not isinstance(files, HubFiles):
        return None
    stated = files.entry(name).sha256
    blob = path.resolve().name
    return stated or (blob if _SHA256.fullmatch(blob) else None)


def _record(file: StoredFile, hashes: bool) -> dict[str, Any]:
    sha256 = file.sha256
    if sha256 is None and hashes:
        sha256 = whole_hash(file.path)
    return {"bytes": file.bytes, "fingerprint": file.fingerprint, "sha256": sha256}


def _change(files: Files, name: str, record: Mapping[str, Any]) -> str | None:
    try:
        entry = files.entry(name)
    except SourceError:
        return f"{name} is missing"
    if not entry.have:
        return f"{name} is not on this machine: fetch it to check it"
    path = files.path(name)
    size = path.stat().st_size
    if size != record["bytes"]:
        return f"{name} has {size:,} bytes, the run was made from one of {record['bytes']:,}"
    if record.get("sha256"):
        if whole_hash(path, again=True) != record["sha256"]:
            return f"{name} changed: its SHA-256 is not that of the file the run was made from"
    elif fingerprint(path) != record["fingerprint"]:
        return f"{name} changed: its fingerprint is not that of the file the run was made from"
    return None
