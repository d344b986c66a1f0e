"""Fetches the files of a plan: what was begun goes on, and nothing enters the cache that is not what the hub says."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from saescope.errors import ResourceError, SourceError
from saescope.sources.files import FileEntry, HubFiles, call_hub
from saescope.sources.job_plan import JobPlan
from saescope.sources.machine import show_bytes

_PIECE = 2**20


def fetch(plan: JobPlan, *, check: bool = False, report: Callable[[str], None] = print) -> JobPlan:
    """Fetch what is missing and return the plan with every file there; with `check` hash also what was there before.

    Raises ResourceError before anything is fetched where the disk cannot hold it, and SourceError for a file that is
    not what the hub says: it is removed. Interrupted, a large file goes on from where it was.
    """
    refuse_if_too_large(plan)
    for number, file in enumerate(plan.needed, 1):
        if not isinstance(file.files, HubFiles):
            continue
        if not file.entry.have:
            begun = f", {show_bytes(file.entry.partial)} are here" if file.entry.partial else ""
            report(
                f"{number}/{len(plan.needed)} {file.entry.name}: {show_bytes(file.entry.bytes or 0)}{begun}"
            )
            _fetch(file.files, file.entry)
        elif check and file.entry.sha256:
            report(f"{number}/{len(plan.needed)} {file.entry.name}: checking")
            _check_hash(file.files.path(file.entry.name), file.files, file.entry)
    return plan.renewed()


def refuse_if_too_large(plan: JobPlan) -> None:
    """Raises ResourceError, with what would fit, unless everything missing can be fetched and written."""
    if plan.request.offline and plan.missing:
        names = ", ".join(file.entry.name for file in plan.missing[:3])
        raise SourceError(
            f"--offline fetches nothing, and {len(plan.missing)} files are not in the cache ({names})"
        )
    if not plan.fits_disk:
        raise ResourceError(f"{plan.why[0]}; {'; or '.join(plan.disk_instead)}")


def _fetch(files: HubFiles, entry: FileEntry) -> None:
    _drop_damaged(files, entry)
    if entry.sha256:
        _download(files, entry)
    path = files.path(entry.name)
    if entry.bytes is not None and path.stat().st_size != entry.bytes:
        got = path.stat().st_size
        _remove(path)
        raise SourceError(
            f"{files.repo}: {entry.name} came with {got:,} bytes, the hub says {entry.bytes:,}: removed, fetch it again"
        )


def _download(files: HubFiles, entry: FileEntry) -> None:
    """Large files are fetched here, into a file of a fixed name that the next attempt appends to.

    huggingface_hub throws away what an interrupted process had of a file, up to 5 GB of a shard.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

    part = files.unfinished(entry)
    blob = part.with_suffix("")
    part.parent.mkdir(parents=True, exist_ok=True)
    lock = files.folder.parent / ".locks" / files.folder.name / f"{entry.sha256}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(files.repo, entry.name, revision=files.revision)
    with WeakFileLock(lock):
        if blob.is_file():
            return
        if part.is_file() and part.stat().st_size > (entry.bytes or 0):
            part.unlink()
        with part.open("ab") as out:
            begun = out.tell()
            call_hub(
                files,
                lambda: http_get(
                    url,
                    out,
                    resume_size=begun,
                    headers=build_hf_headers(),
                    expected_size=entry.bytes,
                    displayed_filename=entry.name,
                ),
            )
        _check_hash(part, files, entry)
        part.rename(
            blob
        )  # huggingface_hub finds it there and only makes the name that points to it


def _check_hash(path: Path, files: HubFiles, entry: FileEntry) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    if digest.hexdigest() != entry.sha256:
        _remove(path)
        raise SourceError(
            f"{files.repo}: {entry.name} is damaged (SHA-256 {digest.hexdigest()[:12]}…, the hub says "
            f"{str(entry.sha256)[:12]}…): removed, fetch it again"
        )


def _drop_damaged(files: HubFiles, entry: FileEntry) -> None:
    """Remove what lies under the file's name in another size, or huggingface_hub would take it as it is."""
    path = files.folder / "snapshots" / files.revision / entry.name
    if path.is_file():
        _remove(path)


def _remove(path: Path) -> None:
    """A cached file and what its name points to."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
