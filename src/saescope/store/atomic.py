"""Publish files and folders whole or not at all: write under a temporary name, flush, rename.

A result is written as `.NAME.partial` beside its path, so leftovers of a killed process are easy
to recognise, and the next attempt clears them. One process and thread at a time writes there
(`sources/locks.py`). Publishing is a rename: a copy could be seen, or killed, half done.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from saescope.errors import ResourceError
from saescope.sources.locks import one_writer
from saescope.sources.machine import free_disk, show_bytes

_ADVICE = "nothing was left behind: free space or choose another place"
_RESERVED_BYTES = 32 * 2**20  # config, tokenizer, card and the file system's own needs


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; it becomes `out` when the block ends.

    If the block fails, the folder is removed, and so are the parents that were created for it.
    Raises ResourceError if `out` exists or if the disk fails.
    """
    with one_writer(out):
        refuse_existing(out)
        staging = partial_path(out)
        with disk_errors(out), _removed_on_failure(staging, out):
            clear(staging)
            staging.mkdir()
            yield staging
            publish(staging, out)


@contextmanager
def atomic_file(out: Path) -> Iterator[Path]:
    """Yield a path to write a file to; it becomes `out` when the block ends.

    Raises ResourceError if `out` exists or if the disk fails, and then leaves nothing.
    """
    with one_writer(out):
        refuse_existing(out)
        staging = partial_path(out)
        with disk_errors(out), _removed_on_failure(staging, out):
            clear(staging)
            yield staging
            publish(staging, out)


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a whole file, over the old one if there is one: readers see either version in full.

    Raises ResourceError if the disk fails; the old file then stays.
    """
    data = content.encode() if isinstance(content, str) else content
    with one_writer(path), disk_errors(path):
        write_then_rename(path, data, durable=True)


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder: a new folder appears with all of them, an old one keeps the rest.

    Raises ResourceError if the disk fails.
    """
    with one_writer(folder):
        if folder.exists():
            for name, content in files.items():
                replace_file(folder / name, content)
            return
        with atomic_folder(folder) as staging:
            for name, content in files.items():
                (staging / name).write_bytes(content)


def write_then_rename(path: Path, data: bytes | memoryview, *, durable: bool) -> None:
    """`replace_file` for bytes, by the one writer of `path`; raises OSError if the disk fails.

    Results that can be recomputed need not be `durable`, that is, flushed to the disk.
    """
    staging = partial_path(path)
    with _removed_on_failure(staging, path):
        clear(staging)
        staging.write_bytes(data)
        if durable:
            _flush(staging)
        staging.replace(path)


def publish(staging: Path, out: Path) -> None:
    """Flush a finished file or folder to the disk and give it its name.

    Raises ResourceError if `out` exists by now.
    """
    _flush(staging)
    refuse_existing(out)
    staging.rename(out)
    with suppress(OSError):  # it is published: at worst a power cut takes it back
        _fsync(out.parent)


def partial_path(out: Path) -> Path:
    """Return where `out` is written before it is published."""
    return out.parent / f".{out.name}.partial"


def refuse_existing(out: Path) -> None:
    """Raise ResourceError if the path is taken: nothing is overwritten."""
    if out.exists() or out.is_symlink():
        raise ResourceError(f"{out} exists: choose another place, or remove it")


def refuse_full_disk(out: Path, needed: int) -> None:
    """Raise ResourceError if the disk has no room for `needed` bytes and some to spare."""
    needed += _RESERVED_BYTES
    free = free_disk(out)
    if free < needed:
        raise ResourceError(
            f"{out} needs {show_bytes(needed)}, {show_bytes(free)} are free: choose another place"
        )


@contextmanager
def disk_errors(target: Path | str, advice: str = _ADVICE) -> Iterator[None]:
    """Turn an OSError of the block into one clear ResourceError about `target`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResourceError(f"cannot write {target}: {reason}; {advice}") from error


@contextmanager
def _removed_on_failure(staging: Path, out: Path) -> Iterator[None]:
    """Create the parents of `out`; if the block fails, remove them again, and `staging`."""
    created = [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        clear(staging)
        remove_empty(created)
        raise


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of these folders that are empty, innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def clear(path: Path) -> None:
    """Remove what is at a path: a file, a link (not its target) or a folder with what it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink()


def _flush(path: Path) -> None:
    """Flush a file, or a folder with everything in it, to the disk."""
    if path.is_dir():
        for child in path.iterdir():
            _flush(child)
    _fsync(path)


def _fsync(path: Path) -> None:
    if path.is_dir():
        if hasattr(os, "O_DIRECTORY"):  # other systems cannot open folders
            _fsync_handle(os.open(path, os.O_RDONLY))
    else:
        _fsync_handle(os.open(path, os.O_RDWR))


def _fsync_handle(handle: int) -> None:
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
