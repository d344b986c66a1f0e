"""A checkpoint's files: in a local folder, or in a hub repository and fetched one by one."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, final

from saescope.demo import EMBEDDED
from saescope.errors import NotCachedError, SourceError, first_line
from saescope.sources.file_names import check_inner_name
from saescope.sources.hub_headers import guard_client
from saescope.sources.hub_listing import Blob, Snapshot, read_listing
from saescope.sources.mistaken import refuse_lfs_pointer, what_file
from saescope.sources.references import parse_hub_ref
from saescope.sources.regular_files import UnreadableFileError, check_regular
from saescope.sources.whole_files import write_whole

T = TypeVar("T")
GGUF = ".gguf"
_LIKE_AN_ADDRESS = re.compile(r"h\w*:|\w*://|www\.|\w*\.?hugg?ing?face\.", re.IGNORECASE)


def open_files(ref: str, *, offline: bool = False) -> "Files":
    """The checkpoint `ref`: a folder, an embedded one, a GGUF file, a hub id or a hub address.

    Raises SourceError if it is none of these. A hub repository is first asked when it is used.
    """
    if ref in EMBEDDED:
        return LocalFiles(EMBEDDED[ref], title=ref)
    folder = Path(ref).expanduser()
    if folder.is_dir():
        return LocalFiles(folder)
    if folder.suffix == GGUF and folder.is_file():
        return LocalFiles(folder.parent, chosen=folder.name)
    if folder.exists():
        refuse_lfs_pointer(folder, SourceError)
        raise SourceError(f"{ref} {what_file(folder)}, or a GGUF file")
    hub = parse_hub_ref(ref)
    if hub is not None and hub.parts and hub.parts[-1].endswith(GGUF):
        return HubFiles(hub.repo, hub.revision, is_offline(offline), "/".join(hub.parts))
    if hub is None and _LIKE_AN_ADDRESS.match(ref):
        raise SourceError(
            f"{ref} is not an address of the hub: write https://huggingface.co/OWNER/NAME, or the "
            "id OWNER/NAME alone"
        )
    if hub is None or (hub.parts and hub.revision is None):
        whole = f" such as {hub.repo}" if hub else " such as Qwen/Qwen3-8B-Base"
        raise SourceError(f"{ref} does not exist: give a folder or a hub id{whole}")
    revision = "/".join(filter(None, [hub.revision, *hub.parts]))  # a branch may have slashes
    return HubFiles(hub.repo, revision or None, is_offline(offline))


def is_offline(offline: bool) -> bool:
    """Whether downloads are forbidden, by the argument or by the hub's own HF_HUB_OFFLINE."""
    return offline or os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "")


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint, before it is fetched.

    `have` says that all of it is on this machine, `partial` how many bytes an interrupted download
    left. `bytes` is None if the size is unknown (offline, or a hub that does not say). `sha256` is
    what the hub says of large files.
    """

    name: str
    bytes: int | None
    have: bool
    sha256: str | None = None
    partial: int = 0

    @property
    def missing(self) -> int:
        """Bytes left to fetch; 0 if the size is unknown."""
        if self.have:
            return 0
        return (self.bytes or 0) - self.partial


class Files(ABC):
    """The files of one checkpoint, by name. `chosen`: the one GGUF file that the user named."""

    chosen: str | None

    @property
    @abstractmethod
    def name(self) -> str:
        """The name that the user gave."""

    @property
    @abstractmethod
    def revision(self) -> str | None:
        """The resolved hub commit, or None for a local folder."""

    @property
    @abstractmethod
    def source(self) -> str:
        """A reference that opens exactly these files again, from any working directory."""

    @abstractmethod
    def names(self) -> frozenset[str]:
        """All file names, relative to the checkpoint's root."""

    @abstractmethod
    def entry(self, name: str) -> FileEntry:
        """What is known of a file without fetching it; raises SourceError if it is missing."""

    @abstractmethod
    def path(self, name: str) -> Path:
        """A local path of a file, fetched first if needed; raises SourceError if it is missing."""


@final
@dataclass(frozen=True)
class LocalFiles(Files):
    """A folder on this machine; embedded checkpoints have their name as `title`."""

    folder: Path
    title: str | None = None
    chosen: str | None = None

    @property
    def name(self) -> str:
        """The folder or file as the user gave it, or the embedded checkpoint's name."""
        return self.title or str(self.folder / (self.chosen or ""))

    @property
    def source(self) -> str:
        """The absolute path, or the embedded checkpoint's name."""
        return self.title or str(self.folder.resolve() / (self.chosen or ""))

    @property
    def revision(self) -> None:
        """None: a folder has no revision."""
        return

    def names(self) -> frozenset[str]:
        """Names of the files directly in the folder."""
        return frozenset(path.name for path in self.folder.iterdir() if path.is_file())

    def entry(self, name: str) -> FileEntry:
        """The file's size."""
        return FileEntry(name, self.path(name).stat().st_size, have=True)

    def path(self, name: str) -> Path:
        """The file's path; raises SourceError if it does not exist."""
        path = self.folder / check_inner_name(name, str(self.folder))
        if not path.is_file():
            raise SourceError(f"{self.folder} has no file {name}{_other_kind(path)}")
        refuse_lfs_pointer(path, SourceError)
        return path


def _other_kind(path: Path) -> str:
    """Say what is there instead of a file, if anything is."""
    try:
        check_regular(path)
    except UnreadableFileError as error:
        return f": {error}"
    except OSError:
        pass
    return ""


@final
@dataclass(frozen=True)
class HubFiles(Files):
    """A hub repository at one commit; files come through huggingface_hub's cache."""

    repo: str
    requested_revision: str | None
    offline: bool
    chosen: str | None = None

    @property
    def name(self) -> str:
        """The repository id, and the file in it that was named."""
        return "/".join(filter(None, [self.repo, self.chosen]))

    @property
    def source(self) -> str:
        """The repository at its commit."""
        return "/".join(filter(None, [f"{self.repo}@{self.revision}", self.chosen]))

    @property
    def revision(self) -> str:
        """The commit of the requested revision; all files come from this one."""
        return self._snapshot.commit

    def names(self) -> frozenset[str]:
        """File names at that commit; offline only those in the cache."""
        return frozenset(self._snapshot.blobs)

    def entry(self, name: str) -> FileEntry:
        """What the hub says of the file, and whether the cache has it in its full size."""
        blob = self._blob(name)
        entry = FileEntry(name, blob.bytes, self._is_cached(name, blob), blob.sha256)
        if entry.have or entry.sha256 is None:
            return entry
        unfinished = self.unfinished(entry)
        if not unfinished.is_file():
            return entry
        return replace(entry, partial=min(unfinished.stat().st_size, entry.bytes or 0))

    def path(self, name: str) -> Path:
        """A path in the cache; a missing file is downloaded first."""
        from huggingface_hub import hf_hub_download

        self._blob(name)

        def download() -> str:
            return hf_hub_download(
                self.repo, name, revision=self.revision, local_files_only=self.offline
            )

        return Path(call_hub(self, download))

    @property
    def folder(self) -> Path:
        """The repository's folder in the cache."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.repo, repo_type="model")

    def unfinished(self, entry: FileEntry) -> Path:
        """The file that collects the bytes of a large file until it is complete and checked."""
        return self.folder / "blobs" / f"{entry.sha256}.incomplete"

    def _is_cached(self, name: str, blob: Blob) -> bool:
        paths = [self.folder / "snapshots" / self.revision / name]
        if blob.etag is not None:  # perhaps fetched for another revision
            paths.append(self.folder / "blobs" / blob.etag)
        sizes = [path.stat().st_size for path in paths if path.is_file()]
        if blob.bytes is None:
            return bool(sizes)
        return blob.bytes in sizes

    def _blob(self, name: str) -> Blob:
        blob = self._snapshot.blobs.get(name)
        if blob is None:
            where = "the offline cache of " if self.offline else ""
            raise SourceError(f"{where}{self.repo} (revision {self.revision}) has no file {name}")
        return blob

    @cached_property
    def _snapshot(self) -> Snapshot:
        if self.offline:
            return self._cached_snapshot()
        from huggingface_hub import HfApi

        def model_info() -> Any:
            return HfApi().model_info(
                self.repo, revision=self.requested_revision, files_metadata=True
            )

        info = call_hub(self, model_info)
        snapshot = read_listing(info, self.repo)
        self._remember(snapshot.commit)
        return snapshot

    def _cached_snapshot(self) -> Snapshot:
        from huggingface_hub import snapshot_download

        def find() -> str:
            # No patterns: a snapshot is found even if only some of its files were fetched.
            return snapshot_download(
                self.repo,
                revision=self.requested_revision,
                allow_patterns=[],
                local_files_only=True,
            )

        folder = Path(call_hub(self, find))
        blobs = {}
        for path in folder.rglob("*"):
            if path.is_file():
                blobs[path.relative_to(folder).as_posix()] = Blob(path.stat().st_size)
        return Snapshot(folder.name, blobs)

    def _remember(self, commit: str) -> None:
        """Note the commit of a revision in the cache, so that offline it is found by name."""
        name = check_inner_name(self.requested_revision or "main", f"the revision of {self.repo}")
        ref = self.folder / "refs" / name
        if name != commit and not (ref.is_file() and ref.read_text() == commit):
            write_whole(ref, commit.encode(), self.folder)  # each file in refs/ is a revision


def call_hub(files: HubFiles, call: Callable[[], T]) -> T:
    """The result of a hub call; raises SourceError, with what to do, if it fails."""
    guard_client()
    try:
        return call()
    except SourceError:
        raise
    except Exception as error:  # connection failures come as whatever HTTP library the client uses
        raise _hub_error(files, error) from error


def _hub_error(files: HubFiles, error: Exception) -> SourceError:
    from huggingface_hub import errors

    repo, revision = files.repo, files.requested_revision
    ref = f"{repo} at revision {revision}" if revision else repo
    match error:
        case errors.GatedRepoError():
            message = f"{repo} is gated: accept its terms on the hub and log in (hf auth login)"
        case errors.RepositoryNotFoundError():
            message = (
                f"no folder and no hub repository named {repo!r}: "
                "check the spelling, or log in if it is private"
            )
        case errors.RevisionNotFoundError():
            message = f"{repo} has no revision {revision!r}"
        case errors.LocalEntryNotFoundError() if files.offline:
            switch = "HF_HUB_OFFLINE=1" if is_offline(offline=False) else "offline=True"
            return NotCachedError(
                f"{ref} is not in the local cache: fetch it once without {switch}"
            )
        case errors.LocalEntryNotFoundError():
            hint = "check the connection, or give a local folder"
            message = f"{ref} is not in the local cache: {hint}"
        case _:
            message = f"cannot fetch {ref}: {first_line(error)}"
    return SourceError(message)
