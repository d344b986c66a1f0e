"""Fetch a plan's files: interrupted downloads resume, and every large file's SHA-256 is checked."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from saescope.errors import ResourceError, SourceError
from saescope.sources.files import FileEntry, HubFiles, call_hub
from saescope.sources.job_plan import JobPlan
from saescope.sources.locks import one_writer
from saescope.sources.machine import show_bytes

Report = Callable[[str], None]
_CHUNK_BYTES = 2**20


def fetch(plan: JobPlan, *, check: bool = False, report: Report = print) -> JobPlan:
    """Fetch what is missing; returns the plan with every file on this machine.

    With `check`, files that were already here are hashed too. Raises ResourceError before anything
    is fetched if the disk is too small, and SourceError for a file that differs from the hub's,
    which is removed. An interrupted download of a large file resumes. While another process fetches
    a file, this waits for it, and `report` says so.
    """
    refuse_if_too_large(plan)
    for number, file in enumerate(plan.needed, 1):
        files, entry = file.files, file.entry
        if not isinstance(files, HubFiles):
            continue
        progress = f"{number}/{len(plan.needed)} {entry.name}"
        if not (entry.have and _snapshot_path(files, entry).is_file()):
            _fetch(files, entry, progress, report)
        elif check and entry.sha256:
            report(f"{progress}: checking")
            path = files.path(entry.name)
            _refuse_damaged(path, _sha256(path), files, entry)
    for files in {file.repo: file.files for file in plan.needed}.values():
        if isinstance(files, HubFiles):
            _remove_abandoned(files)
    return plan.refreshed()


def refuse_if_too_large(plan: JobPlan) -> None:
    """Raise ResourceError, with what would fit, if the disk cannot hold all missing files.

    Raises SourceError for missing files of an offline plan.
    """
    if plan.options.offline and plan.missing:
        names = ", ".join(file.entry.name for file in plan.missing[:3])
        raise SourceError(
            f"offline fetches nothing, and {len(plan.missing)} files are not in the cache ({names})"
        )
    if not plan.fits_disk:
        raise ResourceError(f"{plan.why[0]}; {'; or '.join(plan.disk_suggestions)}")


def _snapshot_path(files: HubFiles, entry: FileEntry) -> Path:
    """Return where the cache shows a file of this commit, also to programs that are offline."""
    return files.folder / "snapshots" / files.revision / entry.name


def _fetch(files: HubFiles, entry: FileEntry, progress: str, report: Report) -> None:
    """Fetch one file, unless another process has done so meanwhile."""
    if files.offline:  # complete, under the name of its contents
        return
    with one_writer(_snapshot_path(files, entry), note=report):
        entry = files.entry(entry.name)
        if not entry.have:
            size = show_bytes(entry.bytes or 0)
            if entry.partial:
                size += f", {show_bytes(entry.partial)} are here"
            report(f"{progress}: {size}")
            _download(files, entry)
        files.path(entry.name)  # a process that was killed may have left it without its name


def _download(files: HubFiles, entry: FileEntry) -> None:
    # A file of another size under this name is damaged: huggingface_hub would take it as it is.
    damaged = _snapshot_path(files, entry)
    if damaged.is_file():
        _remove(damaged)
    if entry.sha256:
        _download_large(files, entry)
    path = files.path(entry.name)
    size = path.stat().st_size
    if entry.bytes is not None and size != entry.bytes:
        _remove(path)
        raise SourceError(
            f"{files.repo}: {entry.name} came with {size:,} bytes, the hub says {entry.bytes:,}: "
            "removed, fetch it again"
        )


def _download_large(files: HubFiles, entry: FileEntry) -> None:
    """Download into a file of a fixed name, which the next attempt appends to.

    huggingface_hub would discard what an interrupted process had of a file, up to 5 GB of a shard.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    unfinished = files.unfinished(entry)
    blob = unfinished.with_suffix("")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(_blob_lock(files, str(entry.sha256))):
        if blob.is_file():
            return
        if unfinished.is_file() and unfinished.stat().st_size > (entry.bytes or 0):
            unfinished.unlink()
        resumes = unfinished.is_file()
        _append_rest(unfinished, files, entry)
        sha256 = _sha256(unfinished)
        if resumes and sha256 != entry.sha256:  # what was here had been torn: all of it again
            unfinished.unlink()
            _append_rest(unfinished, files, entry)
            sha256 = _sha256(unfinished)
        _refuse_damaged(unfinished, sha256, files, entry)
        # By rename: a copy under this name would be taken for the whole file.
        unfinished.rename(blob)  # huggingface_hub finds it there and only adds the snapshot's link


def _remove_abandoned(files: HubFiles) -> None:
    """Remove what huggingface_hub had of small files when its process was killed."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    for part in (files.folder / "blobs").glob("*.*.incomplete"):
        contents = part.name.partition(".")[0]
        if part.with_name(contents).is_file():  # complete by now
            with WeakFileLock(_blob_lock(files, contents)):  # and no download of it goes on
                part.unlink(missing_ok=True)


def _blob_lock(files: HubFiles, name: str) -> Path:
    """Return the lock that huggingface_hub takes while it downloads these contents."""
    lock = files.folder.parent / ".locks" / files.folder.name / f"{name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    return lock


def _append_rest(unfinished: Path, files: HubFiles, entry: FileEntry) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(files.repo, entry.name, revision=files.revision)
    with unfinished.open("ab") as out:
        resume_size = out.tell()

        def download() -> None:
            http_get(
                url,
                out,
                resume_size=resume_size,
                headers=build_hf_headers(),
                expected_size=entry.bytes,
                displayed_filename=entry.name,
            )

        call_hub(files, download)
        os.fsync(out.fileno())  # a power cut must not leave its name without its contents


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _refuse_damaged(path: Path, sha256: str, files: HubFiles, entry: FileEntry) -> None:
    """Remove a file that is not the hub's, and raise SourceError."""
    if sha256 != entry.sha256:
        _remove(path)
        raise SourceError(
            f"{files.repo}: {entry.name} is damaged (SHA-256 {sha256[:12]}…, "
            f"the hub says {str(entry.sha256)[:12]}…): removed, fetch it again"
        )


def _remove(path: Path) -> None:
    """Remove a cached file and, if its name is a link, the link's target."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
