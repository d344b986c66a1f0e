"""A file or folder that appears under its name whole, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saescope.errors import ResourceError, RunError


def refuse_existing(out: Path) -> None:
    """Raises RunError where something of this name is there already: nothing is overwritten."""
    if out.exists() or out.is_symlink():
        raise RunError(f"{out} exists: choose another --out, or remove it")


@contextmanager
def published(out: Path, *, folder: bool) -> Iterator[Path]:
    """Within the block, a place beside `out` to write to; at its end that is flushed to disk and renamed to `out`.

    Whatever ends the block early removes what was written, and so does the next attempt after a crash. Raises RunError
    where `out` exists, ResourceError where the disk refuses.
    """
    refuse_existing(out)
    staging = out.parent / f".{out.name}.partial"
    made = [parent for parent in (out.parent, *out.parent.parents) if not parent.exists()]
    try:
        _remove(staging)
        out.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            staging.mkdir()
        yield staging
        for path in [*staging.rglob("*")] if folder else [staging]:
            _flush(path)
        refuse_existing(out)  # what came meanwhile
        staging.rename(out)
    except BaseException as error:
        _remove(staging)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        if isinstance(error, OSError):
            raise ResourceError(f"cannot write {out}: {error.strerror or error}; nothing was left") from error
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
