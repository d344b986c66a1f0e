"""What is published whole or not at all: written beside its place under another name, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saescope.errors import ResourceError
from saescope.sources.machine import free_disk, show_bytes

_BESIDE = 32 * 2**20  # config, tokenizer, card and what a file system takes for itself


@contextmanager
def staged(out: Path, *, folder: bool = True) -> Iterator[Path]:
    """A folder `.NAME.partial` to write into, or a file's place; it becomes `out` when the block ends.

    It is removed if that fails. A process that is killed leaves it under that name, and the next one clears it. Raises
    ResourceError where something is called `out` already, and where the disk fails.
    """
    refuse_existing(out)
    staging = out.parent / f".{out.name}.partial"
    made = [parent for parent in (out.parent, *out.parent.parents) if not parent.exists()]
    try:
        try:
            _remove(staging)
            (staging if folder else out.parent).mkdir(parents=True, exist_ok=not folder)
            yield staging
            _sync(staging)
            refuse_existing(out)  # what came meanwhile
            staging.rename(out)
            _sync(out.parent)
        except OSError as error:
            raise ResourceError(
                f"cannot write {out}: {error.strerror or error}; nothing was left: free space or choose another --out"
            ) from error
    except BaseException:
        _remove(staging)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise


def refuse_existing(out: Path) -> None:
    """Raises ResourceError where something of this name is there already: nothing is overwritten."""
    if out.exists() or out.is_symlink():
        raise ResourceError(f"{out} exists: choose another --out, or remove it")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def refuse_full_disk(out: Path, needed: int) -> None:
    """Raises ResourceError where the disk has no room for this many bytes and some beside."""
    if (free := free_disk(out)) < needed + _BESIDE:
        raise ResourceError(
            f"{out} needs {show_bytes(needed + _BESIDE)}, {show_bytes(free)} are free: choose another --out"
        )


def write_synced(path: Path, text: str) -> None:
    """A text file that is on the disk when this returns."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def copy_synced(source: Path, path: Path) -> None:
    """A copy of a small file that is on the disk when this returns."""
    with path.open("wb") as file:
        file.write(source.read_bytes())
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """A file, or the names in a folder, are on the disk too; where folders cannot be opened there is nothing to do."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
