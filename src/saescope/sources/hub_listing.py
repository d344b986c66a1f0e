"""What the hub lists of a repository: commit, names, sizes and hashes, checked before use."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saescope.errors import SourceError
from saescope.sources.file_names import check_hash, check_inner_name


@dataclass(frozen=True)
class Blob:
    """The contents of a hub file: size, name in the cache, and SHA-256 if it is a large file."""

    bytes: int | None
    etag: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """A hub repository at one commit."""

    commit: str
    blobs: Mapping[str, Blob]


def read_listing(info: Any, repo: str) -> Snapshot:
    """A repository's files as the hub lists them.

    Raises SourceError for names that leave the repository, and for a commit or a hash that is none:
    all of them become paths.
    """
    commit = check_hash(str(info.sha), repo, "the commit")
    blobs = {
        check_inner_name(file.rfilename, repo): _blob_of(file, repo) for file in info.siblings or ()
    }
    return Snapshot(commit, blobs)


def _blob_of(file: Any, repo: str) -> Blob:
    """The contents of a file as the hub lists them; large files have their SHA-256."""
    size, digest = (file.lfs.size, file.lfs.sha256) if file.lfs else (file.size, file.blob_id)
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
        raise SourceError(f"{repo}: the size of {file.rfilename} is {size!r:.40}: refused")
    if digest is not None:
        check_hash(str(digest), repo, f"the hash of {file.rfilename}")
    return Blob(size, digest, digest if file.lfs else None)
