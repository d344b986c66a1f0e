"""Where a checkpoint's files are: a local folder, or a hub repository that is fetched file by file."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar, final

from saescope.demo import EMBEDDED
from saescope.errors import NotCachedError, SourceError

T = TypeVar("T")

_WHOLE_HASH_LIMIT = 64 * 2**20
_SAMPLES, _SAMPLE_BYTES = 256, 16 * 2**10


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint: its size, whether it is here whole, and where the hub tells it its SHA-256.

    `partial` bytes of it were fetched before an interruption. Offline, the size of what is not here is not known.
    """

    name: str
    bytes: int | None
    have: bool
    sha256: str | None = None
    partial: int = 0

    @property
    def missing(self) -> int:
        """Bytes still to fetch, as far as known."""
        return 0 if self.have else (self.bytes or 0) - self.partial


class Files(ABC):
    """The files of one checkpoint, by name."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the user called it."""

    @property
    @abstractmethod
    def revision(self) -> str | None:
        """The hub commit it was resolved to, or None for a local folder."""

    @property
    @abstractmethod
    def source(self) -> str:
        """What opens these very files again, from whatever folder."""

    @abstractmethod
    def names(self) -> frozenset[str]:
        """All file names, relative to the checkpoint's root."""

    @abstractmethod
    def entry(self, name: str) -> FileEntry:
        """What is known of this file without fetching it; raises SourceError if it is missing."""

    @abstractmethod
    def path(self, name: str) -> Path:
        """A local path of this file, fetched first where need be; raises SourceError if it is missing."""


@final
@dataclass(frozen=True)
class LocalFiles(Files):
    """A folder on this machine, perhaps one that comes with saescope under a name."""

    folder: Path
    title: str | None = None

    @property
    def name(self) -> str:
        """The folder as the user gave it, or its name."""
        return self.title or str(self.folder)

    @property
    def source(self) -> str:
        """The whole path, or the name."""
        return self.title or str(self.folder.resolve())

    @property
    def revision(self) -> None:
        """A folder has no revision."""
        return

    def names(self) -> frozenset[str]:
        """Names of the files directly in the folder."""
        return frozenset(p.name for p in self.folder.iterdir() if p.is_file())

    def entry(self, name: str) -> FileEntry:
        """The file's size: it is here."""
        return FileEntry(name, self.path(name).stat().st_size, have=True)

    def path(self, name: str) -> Path:
        """The file's path; raises SourceError if it is not there."""
        path = self.folder / name
        if not path.is_file():
            raise SourceError(f"{self.folder} has no file {name}")
        return path


@dataclass(frozen=True)
class Blob:
    """What the hub says of a file: its size, the name of its contents in the cache, and the SHA-256 of large ones."""

    bytes: int | None
    etag: str | None = None
    sha256: str | None = None


@final
@dataclass(frozen=True)
class HubFiles(Files):
    """A hub repository at one commit; files come through huggingface_hub's cache."""

    repo: str
    requested_revision: str | None
    offline: bool

    @property
    def name(self) -> str:
        """The repository id."""
        return self.repo

    @property
    def source(self) -> str:
        """The repository at its commit."""
        return f"{self.repo}@{self.revision}"

    @cached_property
    def _commit_and_blobs(self) -> tuple[str, Mapping[str, Blob]]:
        from huggingface_hub import HfApi, snapshot_download

        if self.offline:
            # No pattern, so that a snapshot is found where only some of its files were ever fetched.
            find = partial(
                snapshot_download,
                self.repo,
                revision=self.requested_revision,
                allow_patterns=[],
                local_files_only=True,
            )
            folder = Path(call_hub(self, find))
            cached = (path for path in folder.rglob("*") if path.is_file())
            return folder.name, {
                p.relative_to(folder).as_posix(): Blob(p.stat().st_size) for p in cached
            }
        info = call_hub(
            self,
            lambda: HfApi().model_info(
                self.repo, revision=self.requested_revision, files_metadata=True
            ),
        )
        self._remember(str(info.sha))
        return str(info.sha), {
            s.rfilename: Blob(s.lfs.size, s.lfs.sha256, s.lfs.sha256)
            if s.lfs
            else Blob(s.size, s.blob_id)
            for s in info.siblings or ()
        }

    @property
    def revision(self) -> str:
        """The commit the wanted revision stands for; later files all come from this one."""
        return self._commit_and_blobs[0]

    def names(self) -> frozenset[str]:
        """File names at that commit (offline: those in the cache)."""
        return frozenset(self._commit_and_blobs[1])

    @property
    def folder(self) -> Path:
        """Where the cache keeps this repository."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.repo, repo_type="model")

    def unfinished(self, entry: FileEntry) -> Path:
        """Where the bytes of a large file collect until all are there and found right."""
        return self.folder / "blobs" / f"{entry.sha256}.incomplete"

    def entry(self, name: str) -> FileEntry:
        """What the hub says of the file, and whether it is in the cache in its full size."""
        blob = self._blob(name)
        places = [self.folder / "snapshots" / self.revision / name]
        if blob.etag is not None:  # fetched for another revision
            places.append(self.folder / "blobs" / blob.etag)
        have = any(p.is_file() and blob.bytes in (None, p.stat().st_size) for p in places)
        entry = FileEntry(name, blob.bytes, have, blob.sha256)
        if have or entry.sha256 is None or not (part := self.unfinished(entry)).is_file():
            return entry
        return replace(entry, partial=min(part.stat().st_size, entry.bytes or 0))

    def _remember(self, commit: str) -> None:
        """Note in the cache which commit a name stood for: files are fetched by commit, offline asks by name."""
        wanted = self.requested_revision or "main"
        ref = self.folder / "refs" / wanted
        if wanted != commit and not (ref.is_file() and ref.read_text() == commit):
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit)

    def _blob(self, name: str) -> Blob:
        blob = self._commit_and_blobs[1].get(name)
        if blob is None:
            where = "the offline cache of " if self.offline else ""
            raise SourceError(f"{where}{self.repo} (revision {self.revision}) has no file {name}")
        return blob

    def path(self, name: str) -> Path:
        """A path in the cache, downloaded (and resumed) if it is not there yet."""
        from huggingface_hub import hf_hub_download

        self._blob(name)
        return Path(
            call_hub(
                self,
                lambda: hf_hub_download(
                    self.repo, name, revision=self.revision, local_files_only=self.offline
                ),
            )
        )


def call_hub(files: HubFiles, call: Callable[[], T]) -> T:
    """Run a hub call, turning its failures into one line that says what to do."""
    from huggingface_hub import errors

    at = f" at revision {files.requested_revision}" if files.requested_revision else ""
    try:
        return call()
    except errors.GatedRepoError as error:
        raise SourceError(
            f"{files.repo} is gated: accept its terms on the hub and log in (hf auth login)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"no folder and no hub repository named {files.repo!r}: check the spelling, or log in if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(f"{files.repo} has no revision {files.requested_revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        if files.offline:
            raise NotCachedError(
                f"{files.repo}{at} is not in the local cache: run once without --offline"
            ) from error
        hint = "check the connection, or give a local folder"
        raise SourceError(f"{files.repo}{at} is not in the local cache: {hint}") from error
    except (
        Exception
    ) as error:  # connection failures come as whatever HTTP library the hub client uses
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(f"cannot fetch {files.repo}{at}: {reason}") from error


def open_files(ref: str, *, offline: bool = False) -> Files:
    """Find the checkpoint `ref`: an existing folder, one that comes with saescope, or a hub id `owner/name@revision`.

    Raises SourceError when it can be none.
    """
    if ref in EMBEDDED:
        return LocalFiles(EMBEDDED[ref], title=ref)
    folder = Path(ref).expanduser()
    if folder.is_dir():
        return LocalFiles(folder)
    if folder.exists():
        raise SourceError(f"{ref} is a file; give the folder it lies in")
    repo, _, revision = ref.partition("@")
    if repo.count("/") != 1 or repo.startswith((".", "/", "~")) or repo.endswith("/"):
        raise SourceError(
            f"{ref} does not exist: give a folder or a hub id such as Qwen/Qwen3-8B-Base"
        )
    return HubFiles(repo, revision or None, is_offline(offline))


def is_offline(asked: bool) -> bool:
    """Whether nothing may be fetched: asked for, or by the hub's own HF_HUB_OFFLINE."""
    return asked or os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "")


def fingerprint(path: Path) -> str:
    """A hash that tells files apart: SHA-256 of small files, of size and 256 samples of 16 KiB of large ones.

    Reading all of a 16 GB checkpoint only to name it would cost more than the job; the prefix says which it is.
    """
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _WHOLE_HASH_LIMIT:
            while chunk := file.read(2**20):
                digest.update(chunk)
            return f"sha256:{digest.hexdigest()}"
        digest.update(str(size).encode())
        for i in range(_SAMPLES):
            file.seek((size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return f"sampled-sha256:{digest.hexdigest()}"
