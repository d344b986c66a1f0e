"""A folder that is published whole or not at all: written beside its place under another name, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saescope.errors import ResourceError
from saescope.sources.machine import free_disk, show_bytes

_BESIDE = 32 * 2**20  # config, tokenizer, card and what a file system takes for itself


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder `.NAME.partial` to write into; it becomes `out` when the block ends, and is removed if that fails.

    A process that is killed leaves it under that name, and the next one clears it. Raises ResourceError where the disk
    fails.
    """
    staging = out.parent / f".{out.name}.partial"
    made = [folder for folder in (out.parent, *out.parent.parents) if not folder.exists()]
    try:
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            yield staging
            _sync(staging)
            staging.rename(out)
            _sync(out.parent)
        except OSError as error:
            raise ResourceError(
                f"cannot write {out}: {error.strerror or error}; nothing was left: free space or choose another --out"
            ) from error
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


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


def _sync(folder: Path) -> None:
    """Names in a folder are on the disk too; where folders cannot be opened there is nothing to do."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
